"""Builds the wheel of a folder with a pyproject.toml of hatchling's: PYPROJECT OUTPUT_FOLDER.

Hatchling's wheels hold no time and no folder: the same sources make the same bytes.
"""

import os
import sys
from pathlib import Path

import hatchling.build

if __name__ == "__main__":
    pyproject, output = (Path(argument).absolute() for argument in sys.argv[1:])
    os.chdir(pyproject.parent)
    hatchling.build.build_wheel(str(output))
