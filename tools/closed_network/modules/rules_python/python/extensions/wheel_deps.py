"""Prints the dependencies of an unpacked wheel on a CPU: REQUIREMENT_FILE SITE_PACKAGES CPU."""

import sys
from importlib.metadata import distributions
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def main(requirement_file: Path, site_packages: str, cpu: str) -> None:
    """Print each dependency's name as the `pip` extension spells it, once."""
    pinned = Requirement(requirement_file.read_text().split(" --hash")[0])
    environments = [{"extra": extra, "platform_machine": cpu} for extra in ["", *pinned.extras]]
    names = {
        canonicalize_name(dependency.name)
        for distribution in distributions(path=[site_packages])
        for dependency in map(Requirement, distribution.requires or [])
        if dependency.marker is None or any(map(dependency.marker.evaluate, environments))
    }
    print(*sorted(name.replace("-", "_") for name in names), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
