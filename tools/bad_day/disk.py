"""A disk that can be full."""

import errno
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SIZE = "256m"
"""Of a database with some ten thousand users, its log, and room."""

_CHUNK = bytes(2**20)


@dataclass(frozen=True)
class SmallDisk:
    """One that is mounted."""

    path: Path

    def fill(self) -> None:
        """Take all room that is left, whoever takes some of it at the same time."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while file.write(_CHUNK):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

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
