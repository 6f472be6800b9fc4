"""Pushes an image to a registry by its digest, and then gives it tags."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path


def _run(*command: str | Path) -> None:
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other flags go to `crane push`, such as --insecure."
    )
    parser.add_argument("image", type=Path, help="an OCI layout (the target gives it)")
    parser.add_argument("-r", "--repository", help="as in registry.example.com/team/image, without a tag")
    parser.add_argument("--repository-file", type=Path, help="a file with the repository")
    parser.add_argument(
        "-t", "--tag", action="append", default=[], help="a tag for what was pushed; may be repeated"
    )
    parser.add_argument("--tags-file", type=Path, help="a file with one tag a line")
    arguments, crane_flags = parser.parse_known_args()

    crane = shutil.which("crane") or sys.exit("error: crane is not on PATH")
    repository = arguments.repository
    if not repository and arguments.repository_file:
        repository = arguments.repository_file.read_text().strip()
    if not repository:
        sys.exit("error: no repository: pass --repository REGISTRY/NAME")
    tags = arguments.tag + (arguments.tags_file.read_text().split() if arguments.tags_file else [])

    index = json.loads((arguments.image / "index.json").read_bytes())
    pushed = f"{repository}@{index['manifests'][0]['digest']}"
    _run(crane, "push", arguments.image, pushed, *crane_flags)
    for tag in tags:
        _run(crane, "tag", pushed, tag, *crane_flags)


if __name__ == "__main__":
    _main()
