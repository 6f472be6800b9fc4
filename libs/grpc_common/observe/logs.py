"""Structured logs on stderr: one event a line, JSON or for people, values escaped.

What libraries log by Python's own logging comes out in the same form and at the same level.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

type Level = Literal["debug", "info", "warning", "error"]
type Format = Literal["json", "console"]

log = structlog.get_logger()

LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logging(level: Level = "info", format: Format = "console") -> None:  # noqa: A002 (its name in the configuration)
    """Set up the logs of a program; call it first thing in main, and again to change the format."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.ExceptionRenderer(),
    ]
    render = _renderers(format)
    structlog.configure(
        processors=[_drop_below_level, *shared, *render],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    set_level(level)


def set_level(level: Level) -> None:
    """Log from `level` on, at once and in the whole process."""
    global _threshold  # noqa: PLW0603 (the level is the process's)
    _threshold = LEVELS[level]
    logging.getLogger().setLevel(_threshold)


def is_logged(level: Level) -> bool:
    """Return whether events of `level` are logged; saves making those that are not."""
    return LEVELS[level] >= _threshold


_threshold = logging.INFO


def _drop_below_level(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if LEVELS.get(method, logging.CRITICAL) < _threshold:
        raise structlog.DropEvent
    return event


def _renderers(format: Format) -> list[Processor]:  # noqa: A002
    if format == "json":
        return [structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [_escape, console]


class _Escaped:
    """A text that the console shows as Python writes it in a program."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep values from writing lines of their own, or colours and worse to a terminal."""
    for key, value in event.items():
        text = value if isinstance(value, str) else repr(value)
        if not text.isprintable():
            event[key] = _escaped_lines(text) if key in {"exception", "stack"} else _Escaped(text)
    event["event"] = str(event["event"])
    return event


def _escaped_lines(text: str) -> str:
    """Indent each line, so that none looks like an event whatever an exception's text is."""
    return "\n".join("  " + (line if line.isprintable() else repr(line)) for line in text.split("\n"))
