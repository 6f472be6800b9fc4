"""How an event becomes a line: JSON or for people, bounded, escaped, and never without a line."""

import json
import math
import os
from collections.abc import Callable
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

from grpc_common.core.errors import printable

type Format = Literal["json", "console"]

MAX_VALUE = 8 * 1024
"""Characters of a value; the middle of a longer one is left out."""

MAX_LINE = 16 * 1024
"""Characters of a line: container runtimes split longer ones (CRI's and Docker's buffers are 16 KiB)."""

_MAX_FIELDS = 20
"""Fields that are kept of a line which is too long."""

_OWN_FIELDS = ("timestamp", "level", "event", "logger", "exception")
"""Fields that such a line keeps before any others."""


def cut(text: str, limit: int = MAX_VALUE) -> str:
    """Return `text`, or its begin and its end with a mark between them if it is longer than `limit`."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}[... {len(text) - limit} characters left out ...]{text[-(limit // 2) :]}"


class Renderer:
    """The last processor: makes a line of an event.

    Args:
        format: of the line.
        colors: whether a line for people has colours.

    """

    def __init__(self, format: Format, *, colors: bool = False) -> None:  # noqa: A002 (its name in the configuration)
        self._render: Callable[[EventDict], str] = _json if format == "json" else _Console(colors=colors)

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        """Return the line, as a processor of structlog."""
        return self.line(event)

    def line(self, event: EventDict) -> str:
        """Return the line."""
        try:
            for key, value in event.items():
                if isinstance(value, str) and len(value) > MAX_VALUE:
                    event[key] = cut(value)
            line = self._render(event)
        except Exception as error:  # noqa: BLE001 (values have methods of their own, which may do anything)
            return self._reduced({**event, "logging_error": f"{type(error).__name__}: {_text(error)}"})
        return line if len(line) <= MAX_LINE else self._reduced(event)

    def failure(self, level: str, event: object, error: BaseException) -> str:
        """Return the line in place of one whose making has failed with `error`."""
        timestamp = structlog.processors.TimeStamper(fmt="iso")(None, level, {})["timestamp"]
        fields = {"event": _text(event), "level": level, "timestamp": timestamp}
        return self._reduced({**fields, "logging_error": f"{type(error).__name__}: {_text(error)}"})

    def _reduced(self, event: EventDict) -> str:
        """Return a line of texts only, as long as the bound lets them be."""
        ordered = [key for key in (*_OWN_FIELDS, "logging_error") if key in event]
        ordered += [key for key in event if key not in ordered]
        fields = {cut(key, 32): _plain(event[key]) for key in ordered[:_MAX_FIELDS]}
        if len(ordered) > _MAX_FIELDS:
            fields["fields_left_out"] = len(ordered) - _MAX_FIELDS
        limit, line = MAX_VALUE, ""
        while limit > 1:
            line = self._render(
                {key: cut(v, limit) if isinstance(v, str) else v for key, v in fields.items()}
            )
            if len(line) <= MAX_LINE:
                break
            limit //= 2
        return line


def _plain(value: object) -> object:
    """Return `value` if it is one of JSON's that are short, else its text."""
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:  # noqa: PLR2004 (what JSON's readers take)
        return value
    return _text(value)


def _text(value: object) -> str:
    try:
        return (
            value if type(value) is str else str(value) if isinstance(value, BaseException) else repr(value)
        )
    except Exception as error:  # noqa: BLE001 (as above)
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"


def _json_default(value: Any) -> str:
    return repr(value)


_json = json.JSONEncoder(default=_json_default, allow_nan=False).encode


class _Console:
    def __init__(self, *, colors: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )

    def __call__(self, event: EventDict) -> str:
        """Render keys and values so that they write no lines of their own, nor colours to a terminal."""
        escaped: dict[str, Any] = {}
        for key, value in event.items():
            text = value if isinstance(value, str) else repr(value)
            if key in {"exception", "stack"}:  # which structlog takes as texts
                value = text if text.isprintable() else _escaped_lines(text)  # noqa: PLW2901 (only its form)
            elif not text.isprintable():
                value = _Escaped(text)  # noqa: PLW2901
            escaped[printable(key)] = value
        escaped["event"] = str(escaped["event"])
        return str(self._render(None, "", escaped))


class _Escaped:
    """A text that the console shows as Python writes it in a program."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _escaped_lines(text: str) -> str:
    """Indent each line, so that none looks like an event whatever an exception's text is."""
    return "\n".join("  " + (line if line.isprintable() else repr(line)) for line in text.split("\n"))


def has_colors(descriptor: int | None) -> bool:
    """Return whether lines on `descriptor` are read by a person."""
    try:
        return descriptor is not None and os.isatty(descriptor)
    except OSError:
        return False
