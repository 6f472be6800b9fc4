"""Lines whose fields are known beforehand, which are made without asking structlog each time.

They are the ordinary ones: the renderer has made one, with marks in the places of the values. An ordinary
line takes some 18 µs, and such a one 1.5.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring_ascii
from operator import itemgetter

from structlog.typing import EventDict

from grpc_common.observe.rendering import MAX_VALUE, Format

_PLAIN = re.compile(r"[\w.:/\[\]%+-]+", re.ASCII)
"""Texts that the console shows as they are."""


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

    def of(self, values: Sequence[str | float]) -> str | None:
        """Return the line with these values, of which the numbers are finite.

        None where the ordinary way has to be gone.
        """
        quoted = self._quoted
        texts = [quoted(value) if type(value) is str else repr(value) for value in values]
        texts.append(_timestamp())
        if not (self._is_json or all(texts)):
            return None
        line = self._template % self._in_order(texts)
        return line if len(line) <= MAX_VALUE else None  # the renderer cuts longer values


def _mark(name: str) -> str:
    return f"mark:{name}:"


def _as_it_is(text: str) -> str:
    """Return a text that the console shows as it is, and none for another."""
    return text if _PLAIN.fullmatch(text) else ""


_second = -1, ""
"""A second, and the begin of the timestamps in it."""

_MILLION = 1_000_000


def _timestamp() -> str:
    """Return the time as datetime.isoformat has it, whose zeros cost more to format than to cut out."""
    global _second  # noqa: PLW0603 (a cache)
    now = time.time()
    second, begin = _second
    microseconds = int((now - second) * _MILLION)
    if not 0 <= microseconds < _MILLION:
        second = int(now)
        begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = second, begin
        microseconds = int((now - second) * _MILLION)
    return f"{begin}.{str(_MILLION + microseconds)[1:]}Z" if microseconds else f"{begin}Z"
