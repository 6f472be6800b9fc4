"""Users from a CSV file, a line at a time, however long and broken the file is."""

import asyncio
import codecs
import csv
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from grpc_common.core.errors import printable

MAX_LINE = 64 * 1024
"""Bytes of a line; a name and an email that the service takes have less than 2000."""

_CHUNK = 64 * 1024

_COLUMNS = ("name", "email")

# The other two are what spreadsheets write where the comma is part of a number.
_DELIMITERS = (",", ";", "\t")

_UNCLOSED_QUOTE = "unexpected end of data"
"""What csv says of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line with a user on it."""

    line: int
    name: str
    email: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that can't be a user, with the reason."""

    line: int
    reason: str
    name: str = ""
    email: str = ""


class HeaderError(ValueError):
    """A file does not begin as it must; the text says what is wrong and what would be right."""


async def read_users(file: int, from_line: int = 1) -> AsyncIterator[Row | Rejected]:
    """Yield what is on each line after the header, without empty lines.

    A record is one line, since no name holds a line break: a quotation mark that is not closed
    spoils its own line, and not the rest of the file.

    Args:
        file: the descriptor of a file, pipe or terminal.
        from_line: the first line to yield; the header is line 1.

    Raises:
        HeaderError: the first line does not name the columns.

    """
    async with aclosing(_lines(file)) as lines:
        try:
            header = _Header((await anext(lines, (1, b"")))[1])
        except ValueError as error:
            raise HeaderError(f"the first line {error}") from None
        async for number, line in lines:
            if number >= from_line and line.strip():
                yield header.record(number, line)


class _Header:
    """Knows where name and email are."""

    def __init__(self, line: bytes) -> None:
        text = _decoded(line.removeprefix(codecs.BOM_UTF8))
        self._delimiter = next((delimiter for delimiter in _DELIMITERS if delimiter in text), ",")
        columns = [column.strip().casefold() for column in self._split(text)]
        if any(columns.count(name) != 1 for name in _COLUMNS):
            found = ", ".join(map(repr, columns)) or "nothing"
            raise ValueError(f"must name the columns 'name' and 'email' once each; it has {found}")
        self._count = len(columns)
        self._places = [columns.index(name) for name in _COLUMNS]

    def record(self, number: int, line: bytes) -> Row | Rejected:
        try:
            fields = self._split(_decoded(line))
        except ValueError as error:
            return Rejected(number, str(error))
        if len(fields) != self._count:
            return Rejected(number, f"has {len(fields)} fields where the first line has {self._count}")
        name, email = (fields[place] for place in self._places)
        return Row(number, name, email)

    def _split(self, text: str) -> list[str]:
        try:
            return next(csv.reader([text], delimiter=self._delimiter, strict=True), [])
        except csv.Error as error:
            unclosed = str(error) == _UNCLOSED_QUOTE
            reason = "a quotation mark is not closed on the line" if unclosed else printable(str(error))
            raise ValueError(f"is not CSV: {reason}") from None


def _decoded(line: bytes) -> str:
    if len(line) > MAX_LINE:
        raise ValueError(f"is longer than {MAX_LINE} bytes")
    try:
        text = line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise ValueError(f"is not UTF-8: it has 0x{byte:02X} as byte {error.start + 1}") from None
    if "\r" in text:
        raise ValueError("has a carriage return in it; lines must end in LF or CR LF")
    return text


async def _lines(file: int) -> AsyncGenerator[tuple[int, bytes]]:
    """Yield numbers and lines; of a line that is too long, no more than shows that it is."""
    number, rest = 0, b""
    while True:
        await _wait_until_readable(file)
        if not (chunk := os.read(file, _CHUNK)):
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield number, line
        rest = rest[: MAX_LINE + 1]
    if rest:
        yield number + 1, rest


async def _wait_until_readable(file: int) -> None:
    # In the loop and not in a thread, which nothing could end while it waits for a pipe.
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(file, readable.set)
    except PermissionError:
        # A regular file, which epoll does not take, is always ready.
        await asyncio.sleep(0)
        return
    try:
        await readable.wait()
    finally:
        loop.remove_reader(file)
