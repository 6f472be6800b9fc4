"""Prints the dependencies that apply to an installed wheel here: REQUIREMENT_FILE SITE_PACKAGES."""

import sys
from importlib.metadata import distributions
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def main(requirement_file: Path, site_packages: str) -> None:
    """Print each dependency's name as the `pip` extension spells it, once."""
    pinned = Requirement(requirement_file.read_text().split(" --hash")[0])
    extras = ["", *pinned.extras]
    names = {
        canonicalize_name(dependency.name)
        for distribution in distributions(path=[site_packages])
        for dependency in map(Requirement, distribution.requires or [])
        if dependency.marker is None or any(dependency.marker.evaluate({"extra": extra}) for extra in extras)
    }
    print(*sorted(name.replace("-", "_") for name in names), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
