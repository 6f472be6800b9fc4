"""Structured logs on stderr: one event a line, JSON or for people, values escaped.

What libraries log by Python's own logging comes out in the same form and at the same level.
"""

import logging
import sys
from typing import Literal

import grpc
import structlog
from grpc_health.v1 import health
from structlog.typing import EventDict, Processor, WrappedLogger

from grpc_common.core.calls import Call

type Level = Literal["debug", "info", "warning", "error"]
type Format = Literal["json", "console"]

log = structlog.get_logger()

_LEVELS: dict[str, int] = {
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
    _threshold = _LEVELS[level]
    logging.getLogger().setLevel(_threshold)


_threshold = logging.INFO


def _drop_below_level(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if _LEVELS.get(method, logging.CRITICAL) < _threshold:
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


# What the operator of a server has to look at; all other codes are ordinary, or mistakes of the caller.
_LEVEL_OF_CODE: dict[grpc.StatusCode, Level] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "warning",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "warning",
    grpc.StatusCode.UNAVAILABLE: "warning",
    grpc.StatusCode.DATA_LOSS: "error",
    grpc.StatusCode.INTERNAL: "error",
    grpc.StatusCode.UNKNOWN: "error",
}


class AccessLog:
    """Logs one line a call (`CallObserver`), without its messages and metadata.

    A server's line is at level info, warning or error by the code of the call. Health checks, which come
    every few seconds, and a client's calls are at level debug.
    """

    def __init__(self, *, client: bool = False) -> None:
        self._client = client
        self._event = "client call" if client else "call"

    def started(self, call: Call) -> None:
        """Do nothing; the line comes at the end."""

    def ended(self, call: Call) -> None:
        """Log the call."""
        level = self._level(call)
        if _LEVELS[level] < _threshold:
            return
        assert call.code is not None
        fields: dict[str, object] = {
            "method": call.method.path,
            "code": call.code.name,
            "duration": round(call.elapsed, 6),
            "peer": call.peer,
        }
        if call.trace_id:
            fields["trace_id"] = call.trace_id
        if call.deadline is not None:
            fields["deadline_left"] = round(call.deadline, 3)
        log.log(_LEVELS[level], self._event, **fields)

    def _level(self, call: Call) -> Level:
        if self._client or call.method.service == health.SERVICE_NAME:
            return "debug"
        assert call.code is not None
        return _LEVEL_OF_CODE.get(call.code, "info")
