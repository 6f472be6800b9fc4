"""The access log: one line a call."""

from grpc_health.v1 import health

from grpc_common.core.calls import Call, running_call
from grpc_common.observe.logs import KnownEvent, Level, is_logged

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
        self._event = "client call" if client else "call"
        self._events: dict[tuple[str, str, int], KnownEvent] = {}

    def started(self, call: Call) -> None:
        """Do nothing; the line comes at the end."""

    def ended(self, call: Call) -> None:
        """Log the call."""
        assert call.code is not None
        kind = (call.caller != "") | (call.trace_id != "") << 1 | (call.deadline is not None) << 2
        event = self._events.get((call.method.key, call.code._name_, kind)) or self._add(call, kind)
        if not is_logged(event.level):
            return
        # What round() makes of it, in a third of the time.
        values: list[str | float] = [int(call.elapsed * 1e6 + 0.5) / 1e6, call.peer]
        if kind:
            self._add_optional(call, values)
        running = running_call.get()
        if call.unknown_path:
            self._new(call, call.unknown_path, kind).log_ordinarily(values)
        elif self._client or not (running is call or running is None):
            event.log_ordinarily(values)  # which tells in what other call it was logged
        else:
            event.log(values)

    def _add_optional(self, call: Call, values: list[str | float]) -> None:
        if call.caller:
            values.append(call.caller)
        if call.trace_id:
            values.append(call.trace_id)
        if call.deadline is not None:
            values.append(round(call.deadline, 3))

    def _add(self, call: Call, kind: int) -> KnownEvent:
        assert call.code is not None
        event = self._new(call, call.method.path, kind)
        self._events[call.method.key, call.code._name_, kind] = event
        return event

    def _new(self, call: Call, path: str, kind: int) -> KnownEvent:
        assert call.code is not None
        optional = (name for bit, name in enumerate(_OPTIONAL) if kind & 1 << bit)
        known = {"method": path, "code": call.code.name}
        return KnownEvent(self._level(call), self._event, known, ("duration", "peer", *optional))

    def _level(self, call: Call) -> Level:
        if self._client or call.method.service == health.SERVICE_NAME:
            return "debug"
        assert call.code is not None
        return _LEVEL_OF_CODE.get(call.code._name_, "info")
