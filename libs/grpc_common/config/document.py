"""What the file of a configuration holds, and the error that says what is wrong with it."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from grpc_common.core.errors import StartError, printable

type Place = tuple[str | int, ...]
"""Where a value stands: the keys and list indices that lead to it."""

MAX_BYTES = 2**20
"""The largest file; a ConfigMap can't hold more."""

SHOWN = 100
"""Characters of a key or a value that a message has at most."""

_KEY = re.compile(r"[\w./*-]{1,100}")
"""Other keys are not shown: with the colon forgotten, `url postgresql://...` is a key, password and all."""

_MAX_MISTAKES = 100
"""Nobody reads more of them at a time."""


class ConfigError(StartError):
    """The configuration can't be used; the text names every mistake, one a line."""

    @classmethod
    def of(cls, *mistakes: str) -> ConfigError:
        """Return the error for `mistakes`, which may quote anything."""
        lines = [printable(mistake) for mistake in mistakes[:_MAX_MISTAKES]]
        if more := len(mistakes) - len(lines):
            lines.append(f"and {more} mistakes more")
        return cls("\n".join(lines))


@dataclass(frozen=True)
class Document:
    """What a file holds."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    """The line of every value, from 1."""
    mistakes: list[str] = field(default_factory=list)
    """What is wrong although the values could be read."""


def read_bytes(file: Path) -> bytes:
    """Return the content of a regular file; from a pipe or a device it would never end.

    Raises:
        ConfigError: it can't be read, or is too large.

    """
    try:
        # Without O_NONBLOCK a named pipe would wait for somebody who writes to it.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:  # noqa: PTH123 (of a descriptor)
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError.of(f"{file}: Is a pipe or a device; name a regular file")
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError.of(f"{file}: {reason}; name a file that can be read") from None
    if len(content) > MAX_BYTES:
        raise ConfigError.of(f"{file}: is larger than {MAX_BYTES} bytes")
    return content


def dotted(place: Place) -> str:
    """Return a place as people write it: `server.keepalive.time`."""
    return ".".join(str(part) if _KEY.fullmatch(str(part)) else "***" for part in place)


def shorten(value: Any) -> str:
    """Return a value for a message, where it must not be longer than the line that it is on."""
    try:
        text = str(value) if isinstance(value, date) else repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
