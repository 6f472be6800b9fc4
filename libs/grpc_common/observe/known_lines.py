"""Lines whose fields are known beforehand, which are made without asking structlog each time.

They are the ordinary ones: the renderer has made one, with marks in the places of the values. An ordinary
line takes some 18 µs, and such a one 1.5 if many are made in a row; among all else that a call needs it is
three times that. So the log's writer makes them, many at a time.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from json.encoder import encode_basestring_ascii
from operator import itemgetter

from structlog.typing import EventDict

from grpc_common.observe.rendering import MAX_VALUE, Format

_PLAIN = re.compile(r"[\w.:/\[\]%+-]+", re.ASCII)
"""Texts that the console shows as they are."""


_LONGEST_ESCAPE = 12
"""Characters that JSON has for one, at most: two surrogates of \\uXXXX."""

_NUMBERS = 500
"""Characters that the numbers of a line, its time among them, take at most."""


class KnownLine:
    """Makes the lines of one kind of event, as `render` does of whole events.

    Args:
        render: makes a line of an event.
        format: of the line.
        level: of the event.
        event: its text.
        known: its first fields, which are always the same. Until here nothing may be a stranger's.
        names: those of its other fields.

    """

    def __init__(
        self,
        render: Callable[[EventDict], str],
        format: Format,  # noqa: A002 (its name in the configuration)
        *,
        level: str,
        event: str,
        known: Mapping[str, str],
        names: Sequence[str],
    ) -> None:
        self._is_json = format == "json"
        self._quoted: Callable[[str], str] = encode_basestring_ascii if format == "json" else _as_it_is
        marked: EventDict = {
            **known,
            **{name: _mark(name) for name in names},
            "event": event,
            "level": level,
            "timestamp": _mark("timestamp"),
        }
        line = render(marked).replace("%", "%%")
        marks = [*(self._quoted(_mark(name)) for name in names), _mark("timestamp")]
        order = sorted(range(len(marks)), key=lambda index: line.index(marks[index]))
        # The console sorts the fields.
        self._in_order: Callable[[list[str]], object] = tuple if self._is_json else itemgetter(*order)
        for mark in marks:
            line = line.replace(mark, "%s")
        self._template = line

    def later(self, values: Sequence[str | float]) -> Callable[[], str] | None:
        """Return what makes the line with these values, of which the numbers are finite, and the time of now.

        None where the ordinary way has to be gone.
        """
        now = time.time()
        if self._is_json:
            size = len(self._template)
            for value in values:
                if type(value) is str:
                    size += _LONGEST_ESCAPE * len(value)
            # The renderer cuts longer values.
            return partial(self._of, values, now) if size + _NUMBERS <= MAX_VALUE else None
        line = self._of(values, now)
        return (lambda: line) if line and len(line) <= MAX_VALUE else None

    def _of(self, values: Sequence[str | float], now: float) -> str:
        quoted = self._quoted
        texts = [quoted(value) if type(value) is str else repr(value) for value in values]
        texts.append(_timestamp(now))
        return self._template % self._in_order(texts) if self._is_json or all(texts) else ""


def _mark(name: str) -> str:
    return f"mark:{name}:"


def _as_it_is(text: str) -> str:
    """Return a text that the console shows as it is, and none for another."""
    return text if _PLAIN.fullmatch(text) else ""


_second = -1, ""
"""A second, and the begin of the timestamps in it."""

_MILLION = 1_000_000


def _timestamp(now: float) -> str:
    """Return a time as datetime.isoformat has it, whose zeros cost more to format than to cut out."""
    global _second  # noqa: PLW0603 (a cache)
    second, begin = _second
    microseconds = int((now - second) * _MILLION)
    if not 0 <= microseconds < _MILLION:
        second = int(now)
        begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = second, begin
        microseconds = int((now - second) * _MILLION)
    return f"{begin}.{str(_MILLION + microseconds)[1:]}Z" if microseconds else f"{begin}Z"
