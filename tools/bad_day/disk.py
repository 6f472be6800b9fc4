"""A disk that can be full."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SIZE = "256m"
"""Of a database with some ten thousand users, its log, and room."""


@dataclass(frozen=True)
class SmallDisk:
    """One that is mounted."""

    path: Path

    def fill(self) -> None:
        """Take all room that is left."""
        with self._ballast.open("wb") as file:
            room = os.statvfs(self.path)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_bsize)

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"


@contextmanager
def small_disk() -> Iterator[SmallDisk]:
    """Mount one for the block; skip the test if this may not mount."""
    with tempfile.TemporaryDirectory(prefix="disk-") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0700", "tmpfs", folder]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small disk (root with CAP_SYS_ADMIN)")
        try:
            yield SmallDisk(Path(folder))
        finally:
            subprocess.run(["umount", folder], check=True)  # noqa: S607 (where it is differs)
