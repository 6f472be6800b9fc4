import os
from pathlib import Path

import pytest

from grpc_common.core.file_version import file_version


def rewrite(file: Path) -> None:
    """Write as many other bytes, with the modification time of before."""
    before = file.stat()
    file.write_text("new")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(file: Path) -> None:
    """Put another file in its place, as old as the first."""
    other = file.with_name("other")
    other.write_text("new")
    before = file.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)


def relink(file: Path) -> None:
    """Have the link name another file, as in the volumes of Kubernetes."""
    other = file.with_name("other")
    other.write_text("new")
    link = file.with_name("link")
    link.symlink_to(other)
    link.rename(file)


def await_tick(file: Path) -> None:
    """Return once the kernel's clock for files, which ticks every few milliseconds, is past its time."""
    other = file.with_name("clock")
    other.touch()
    while other.stat().st_ctime_ns <= file.stat().st_ctime_ns:
        other.touch()


@pytest.mark.parametrize("change", [rewrite, replace, relink, lambda file: file.chmod(0o400)])
def test_every_change_is_seen(tmp_path, change):
    """New content, another file at the path and another mode make another version."""
    file = tmp_path / "file"
    file.write_text("old")
    before = file_version(file.stat())
    await_tick(file)
    change(file)
    assert file_version(file.stat()) != before


def test_reading_is_no_change(tmp_path):
    """A file that is only read stays the same version."""
    file = tmp_path / "file"
    file.write_text("old")
    before = file_version(file.stat())
    file.read_text()
    assert file_version(file.stat()) == before
