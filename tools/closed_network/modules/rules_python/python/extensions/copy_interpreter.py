"""Copies Python from a tree of Debian's files, relocatable: TREE TARGET.

The tree may be for another architecture; its Python is of the version that runs this.
"""

import compileall
import py_compile
import shutil
import sys
import sysconfig
from pathlib import Path

# What no program of ours imports: tests, desktop parts, and Debian's own packages.
LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "site-packages",
    "sitecustomize.py",
    "test",
    "tkinter",
    "turtledemo",
}


def left_out(_folder: str, names: list[str]) -> set[str]:
    """Return those of the names in a folder that are not copied."""
    # What is for linking to it has the architecture in its name.
    return LEFT_OUT.intersection(names) | {name for name in names if name.startswith("config-3")}


def main(tree: Path, target: Path) -> None:
    """Lay out bin/ and lib/ as the interpreter expects them beside each other."""
    name = f"python{sysconfig.get_python_version()}"
    (target / "bin").mkdir()
    shutil.copy2((tree / "usr/bin" / name).resolve(), target / "bin" / name)
    shutil.copytree(tree / "usr/lib" / name, target / "lib" / name, ignore=left_out)
    # Bytecode that holds no time and no folder.
    compileall.compile_dir(
        target / "lib",
        quiet=1,
        stripdir=target,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
