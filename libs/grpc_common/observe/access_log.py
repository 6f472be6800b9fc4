"""The access log: one line a call."""

from grpc_health.v1 import health

from grpc_common.core.calls import Call, running_call
from grpc_common.observe.logs import KnownEvent, Level, is_logged

_LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")

_FIELDS = ("method", "code", "duration", "peer")

_OPTIONAL = ("caller", "trace_id", "deadline_left")
"""Fields of calls that have them; each is a bit in the number of a call's kind."""

# What the operator of a server has to look at; all other codes are ordinary, or mistakes of the caller.
_LEVEL_OF_CODE: dict[str, Level] = {
    "DEADLINE_EXCEEDED": "warning",
    "RESOURCE_EXHAUSTED": "warning",
    "UNAVAILABLE": "warning",
    "DATA_LOSS": "error",
    "INTERNAL": "error",
    "UNKNOWN": "error",
}


class AccessLog:
    """Logs one line a call (`CallObserver`), without its messages and metadata.

    A server's line is at level info, warning or error by the code of the call. Health checks, which come
    every few seconds, and a client's calls are at level debug.
    """

    def __init__(self, *, client: bool = False) -> None:
        self._client = client
        event = "client call" if client else "call"
        self._events = {
            level: [KnownEvent(level, event, names) for names in _names_of_kinds()] for level in _LEVELS
        }

    def started(self, call: Call) -> None:
        """Do nothing; the line comes at the end."""

    def ended(self, call: Call) -> None:
        """Log the call."""
        level = self._level(call)
        if not is_logged(level):
            return
        assert call.code is not None
        duration = int(call.elapsed * 1e6 + 0.5) / 1e6  # what round() makes of it, in a third of the time
        values: list[str | float] = [call.unknown_path or call.method.path, call.code._name_, duration]
        values.append(call.peer)
        kind = 0
        if call.caller:
            kind |= 1
            values.append(call.caller)
        if call.trace_id:
            kind |= 2
            values.append(call.trace_id)
        if call.deadline is not None:
            kind |= 4
            values.append(round(call.deadline, 3))
        event = self._events[level][kind]
        running = running_call.get()
        if running is call or running is None:
            event.log(values)
        else:  # a line tells in which other call it was logged
            event.log_ordinarily(values)

    def _level(self, call: Call) -> Level:
        if self._client or call.method.service == health.SERVICE_NAME:
            return "debug"
        assert call.code is not None
        return _LEVEL_OF_CODE.get(call.code._name_, "info")


def _names_of_kinds() -> list[tuple[str, ...]]:
    """Return the fields of each kind of call."""
    return [
        (*_FIELDS, *(name for bit, name in enumerate(_OPTIONAL) if kind & 1 << bit))
        for kind in range(1 << len(_OPTIONAL))
    ]
