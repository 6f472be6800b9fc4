"""The access log: one line a call."""

import structlog
from grpc_health.v1 import health

from grpc_common.core.calls import Call, running_call
from grpc_common.observe.known_lines import Fields
from grpc_common.observe.logs import LEVELS, Level, is_logged, log_known

log = structlog.get_logger()

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

    def started(self, call: Call) -> None:
        """Do nothing; the line comes at the end."""

    def ended(self, call: Call) -> None:
        """Log the call."""
        level = self._level(call)
        if not is_logged(level):
            return
        assert call.code is not None
        fields: Fields = {
            "method": call.unknown_path or call.method.path,
            "code": call.code._name_,
            "duration": round(call.elapsed, 6),
            "peer": call.peer,
        }
        if call.caller:
            fields["caller"] = call.caller
        if call.trace_id:
            fields["trace_id"] = call.trace_id
        if call.deadline is not None:
            fields["deadline_left"] = round(call.deadline, 3)
        if running_call.get() in {None, call}:
            log_known(level, self._event, fields)
        else:  # a line tells in which other call it was logged
            log.log(LEVELS[level], self._event, **fields)

    def _level(self, call: Call) -> Level:
        if self._client or call.method.service == health.SERVICE_NAME:
            return "debug"
        assert call.code is not None
        return _LEVEL_OF_CODE.get(call.code._name_, "info")
