"""Copies the running interpreter and its standard library to the folder given, relocatable."""

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
    f"config-{sysconfig.get_config_var('LDVERSION')}-{sysconfig.get_config_var('MULTIARCH')}",
}


def main(target: Path) -> None:
    """Lay out bin/ and lib/ as the interpreter expects them beside each other."""
    name = f"python{sysconfig.get_python_version()}"
    (target / "bin").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), target / "bin" / name)
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        target / "lib" / name,
        ignore=lambda _folder, names: LEFT_OUT.intersection(names),
    )
    # Bytecode that holds no time and no folder.
    compileall.compile_dir(
        target / "lib",
        quiet=1,
        stripdir=target,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
