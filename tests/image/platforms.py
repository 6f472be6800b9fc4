"""The platforms that images are for, and how the one that is not this machine's runs here."""

import platform
import shutil

ARCHITECTURES = ("amd64", "arm64")

NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
(FOREIGN,) = set(ARCHITECTURES) - {NATIVE}

EMULATOR = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}[FOREIGN]
"""A program of the Debian package qemu-user."""


def emulator() -> str | None:
    """Return the path of the program that runs those of the other architecture, if it is there."""
    return shutil.which(EMULATOR)
