"""Structured logs on stderr: one event a line, JSON or for people, values escaped and bounded.

What libraries log by Python's own logging comes out in the same form and at the same level.
A call that logs neither waits nor raises, whatever is logged and whoever reads it.
"""

import atexit
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, override

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from grpc_common.core.calls import running_call
from grpc_common.observe import writer
from grpc_common.observe.known_lines import KnownLine
from grpc_common.observe.rate_limit import RateLimit
from grpc_common.observe.rendering import Format, Renderer, has_colors

type Level = Literal["debug", "info", "warning", "error"]

LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logging(level: Level = "info", format: Format = "console") -> None:  # noqa: A002 (its name in the configuration)
    """Set up the logs of a program; call it first thing in main, and again to change the format."""
    _configure_structlog(format)
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_SHARED],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer],
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    set_level(level)


def configure_default_logging() -> None:
    """Log for people if the program has not set up structlog: its own default shows local variables."""
    if not structlog.is_configured():
        _configure_structlog("console")


def set_level(level: Level) -> None:
    """Log from `level` on, at once and in the whole process."""
    global _threshold  # noqa: PLW0603 (the level is the process's)
    _threshold = LEVELS[level]
    logging.getLogger().setLevel(_threshold)


def is_logged(level: Level) -> bool:
    """Return whether events of `level` are logged; saves making those that are not."""
    return LEVELS[level] >= _threshold


def is_set_up() -> bool:
    """Return whether structlog is as this module has set it up, and not as the program has itself."""
    return structlog.get_config()["wrapper_class"] is _Logger


def is_json() -> bool:
    """Return whether lines are JSON."""
    return _format == "json"


class KnownEvent:
    """An event that is logged often, at a fraction of the cost of others.

    Its line is the ordinary one, and made in the ordinary way where structlog was told to do more with it.

    Args:
        level: of the event.
        event: its text.
        known: its first fields, which are always the same. Until here nothing may be a stranger's.
        names: those of its other fields.

    """

    def __init__(self, level: Level, event: str, known: Mapping[str, str], names: Sequence[str]) -> None:
        self.level: Level = level
        self._event = event
        self._fields = known
        self._names = names
        self._line: KnownLine
        self._renderer: Renderer | None = None

    def log(self, values: Sequence[str | float]) -> None:
        """Log it with the values of its fields, the numbers finite, whatever the level (see `is_logged`)."""
        line = None
        if _is_ordinary():
            if self._renderer is not _renderer:
                self._prepare()
            line = self._line.later(values)
        if line is None:
            self.log_ordinarily(values)
        else:
            writer.lines.add(line, _SIZE)

    def log_ordinarily(self, values: Sequence[str | float]) -> None:
        """Log it as any other event."""
        fields: dict[str, object] = {**self._fields, **dict(zip(self._names, values, strict=True))}
        _log.log(LEVELS[self.level], self._event, **fields)

    def _prepare(self) -> None:
        self._renderer = _renderer
        self._line = KnownLine(
            _renderer.line,
            _format,
            level=self.level,
            event=self._event,
            known=self._fields,
            names=self._names,
        )


_SIZE = 400
"""Characters that a known line takes, about."""

rate_limit = RateLimit()
"""Of lines that peers cause: C-core's and grpcio's own."""

_threshold = logging.INFO
_format: Format = "console"
_renderer = Renderer("console")
_processors: list[Processor] = []
_log = structlog.get_logger()
_variables: object = getattr(structlog.contextvars, "_CONTEXT_VARS", True)
"""What was ever bound by bind_contextvars: to look for it in the context takes longer than a line."""


def _is_ordinary() -> bool:
    """Return whether a line is made of its event and the call alone, as this module has set it up."""
    if _variables and structlog.contextvars.get_contextvars():
        return False
    config = structlog.get_config()
    return (
        config["processors"] == _processors
        and config["wrapper_class"] is _Logger
        and config["logger_factory"] is _Lines
    )


def _drop_below_level(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if LEVELS.get(method, logging.CRITICAL) < _threshold:
        raise structlog.DropEvent
    return event


def _add_call(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say in which call a servicer, or what it uses, has logged."""
    call = running_call.get()
    if call is not None:
        event.setdefault("method", call.method.path)
        event.setdefault("peer", call.peer)
        if call.caller:
            event.setdefault("caller", call.caller)
        if call.trace_id:
            event.setdefault("trace_id", call.trace_id)
    return event


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    _add_call,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.ExceptionRenderer(),
]


def _configure_structlog(format: Format) -> None:  # noqa: A002
    global _format, _renderer, _processors  # noqa: PLW0603 (the form of the lines is the process's)
    _format, _renderer = format, Renderer(format, colors=has_colors(writer.lines.descriptor))
    _processors = [_drop_below_level, *_SHARED, _renderer]
    structlog.configure(
        processors=_processors.copy(),
        wrapper_class=_Logger,
        logger_factory=_Lines,
    )
    writer.lines.notices = _notices


class _Lines:
    """What structlog gives its lines to."""

    def __init__(self, *_names: str) -> None:
        self.msg = self.debug = self.info = self.warning = self.warn = writer.lines.add
        self.error = self.critical = self.fatal = self.log = writer.lines.add


_Base = structlog.make_filtering_bound_logger(logging.NOTSET)


class _Logger(_Base):  # type: ignore[misc, valid-type]
    """Logs a line about the failure if the event can't be logged."""


def _never_raising(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def logging_method(self: _Logger, *args: Any, **fields: Any) -> Any:
        try:
            return method(self, *args, **fields)
        except Exception as error:  # noqa: BLE001 (a value's methods may do anything)
            writer.lines.add(_renderer.failure(name, _event(args), error))

    return logging_method


def _never_raising_async(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    async def logging_method(self: _Logger, *args: Any, **fields: Any) -> Any:
        try:
            return await method(self, *args, **fields)
        except Exception as error:  # noqa: BLE001 (as above)
            writer.lines.add(_renderer.failure(name, _event(args), error))

    return logging_method


def _event(args: tuple[Any, ...]) -> str:
    return next((text for text in args if isinstance(text, str)), "")


for _name in ("debug", "info", "warning", "error", "critical", "exception", "fatal", "warn", "msg", "log"):
    setattr(_Logger, _name, _never_raising(_name, getattr(_Base, _name)))
    if _asynchronous := getattr(_Base, f"a{_name}", None):
        setattr(_Logger, f"a{_name}", _never_raising_async(_name, _asynchronous))


class _Handler(logging.Handler):
    """Takes what is logged by Python's own logging."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            if _bound_grpc(record):
                writer.lines.add(self.format(record))
        except Exception as error:  # noqa: BLE001 (as above)
            level = record.levelname.lower()
            writer.lines.add(_renderer.failure(level, record.msg, error))


def _bound_grpc(record: logging.LogRecord) -> bool:
    """Bound what peers can have grpcio's loggers write, and keep their metadata out of it."""
    if record.name.partition(".")[0] != "grpc":
        return True
    if isinstance(record.args, tuple):
        record.args = tuple(
            f"{len(value)} bytes" if isinstance(value, bytes) else value for value in record.args
        )
    if record.exc_info and isinstance(record.exc_info[1], UnicodeError):
        record.exc_info = None
    return rate_limit.admits(f"{record.name}: {str(record.msg)[:40]}")


def _notices(dropped: int, *, at_once: bool = False) -> list[str]:
    lines = []
    if dropped:
        lines.append(
            _line("warning", "log lines were dropped, since they could not be written", count=dropped)
        )
    for kind, count in rate_limit.take_suppressed(at_once=at_once).items():
        lines.append(_line("warning", "more lines of this kind were suppressed", kind=kind, count=count))
    return lines


def _line(level: str, event: str, **fields: object) -> str:
    made: EventDict = {"event": event, "level": level, **fields}
    return _renderer(None, level, structlog.processors.TimeStamper(fmt="iso")(None, level, made))


@atexit.register
def _tell_suppressed() -> None:
    for line in _notices(0, at_once=True):
        writer.lines.add(line)
