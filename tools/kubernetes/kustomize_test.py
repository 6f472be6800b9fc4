"""The command that renders overlays, on machines whose tools are not GNU's."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

RULE = Path("tools/kubernetes/kustomize.bzl").read_text()
COMMAND = re.search(r'_COMMAND = """\n(.*?)"""', RULE, re.DOTALL)

TOOLS = ("cat", "cp", "mkdir", "mktemp", "realpath", "rm", "sed", "tar", "find", "ls", "dirname")
"""What a Mac has as well, but without GNU's long options."""

POSIX_ONLY = """#!/bin/sh
for word; do
    case $word in --*) echo "{name}: illegal option -- $word" >&2; exit 64 ;; esac
done
exec {program} "$@"
"""

KUSTOMIZE = """#!/bin/sh
[ "$1" = build ] && cat "$2/kustomization.yaml"
"""


def script(path: Path, text: str) -> Path:
    """Write a program."""
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def mac(tmp_path):
    """Return a folder for PATH with the tools as POSIX describes them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        script(folder / name, POSIX_ONLY.format(name=name, program=shutil.which(name)))
    (folder / "bash").symlink_to(str(shutil.which("bash")))
    return folder


def test_renders_without_gnu_tools(tmp_path, mac):
    """Files of several folders, some behind links, are where Kustomize looks for them."""
    sources = tmp_path / "k8s/overlays/dev"
    sources.mkdir(parents=True)
    (tmp_path / "real.yaml").write_text("kind: Kustomization\n")
    (sources / "kustomization.yaml").symlink_to(tmp_path / "real.yaml")
    script(tmp_path / "kustomize", KUSTOMIZE)
    assert COMMAND
    command = ["bash", "-c", COMMAND[1].replace("{edits}", ""), "render"]
    command += ["kustomize", "k8s/overlays/dev", "out.yaml", "k8s/overlays/dev/kustomization.yaml"]
    environment = {"PATH": str(mac), "TMPDIR": str(tmp_path), "HOME": os.environ.get("HOME", "/")}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.yaml").read_text() == "kind: Kustomization\n"
