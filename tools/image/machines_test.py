import sys
from pathlib import Path

import pytest

from tools.image.layer import LayerError, require_platform
from tools.image.machines import platform_of


def elf(machine: int, order: bytes = b"\1") -> bytes:
    """Return the begin of a library for a machine."""
    number = machine.to_bytes(2, "little" if order == b"\1" else "big")
    return b"\x7fELF\2" + order + bytes(12) + number


@pytest.mark.parametrize(
    ("content", "platform"),
    [
        (elf(62), "linux/amd64"),
        (elf(183), "linux/arm64"),
        (elf(40), "linux/arm"),
        (elf(22, b"\2"), "linux/ELF machine 22"),
        (bytes.fromhex("cffaedfe0c000001"), "darwin"),
        (bytes.fromhex("cafebabe00000002"), "darwin"),
        (bytes.fromhex("cafebabe00000041"), None),  # Java's
        (b"#!/bin/sh", None),
        (b"", None),
        (b"\x7fELF", "linux/ELF machine 0"),
    ],
)
def test_platform_is_read_from_the_file(content, platform):
    """ELF names the machine, Mach-O is a Mac's, and all else has none."""
    assert platform_of(content) == platform


def test_running_interpreter_is_for_linux():
    """A real program is recognised as well as those that are made up here."""
    assert str(platform_of(Path(sys.executable).read_bytes())).startswith(("linux/a", "darwin"))


@pytest.mark.parametrize(
    ("content", "what"), [(elf(62), "linux/amd64"), (bytes.fromhex("cffaedfe"), "darwin")]
)
def test_layer_refuses_what_the_machine_cannot_load(content, what):
    """A library for another machine, or a Mac's, makes no layer; the error names file and platforms."""
    path = Path("grpc/cygrpc.so")
    require_platform({path: elf(183), Path("a.py"): b"1"}, "linux/arm64")
    with pytest.raises(LayerError, match=rf"grpc/cygrpc\.so is for {what}, but the image is for linux/arm64"):
        require_platform({path: content}, "linux/arm64")
