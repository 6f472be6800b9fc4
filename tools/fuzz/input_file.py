"""Inputs of parsers that are given a file."""

import os
from pathlib import Path

_file = os.memfd_create("input")


def input_file(data: bytes) -> Path:
    """Return a file in memory with this content alone; it is the same file for every input."""
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    return Path(f"/proc/self/fd/{_file}")
