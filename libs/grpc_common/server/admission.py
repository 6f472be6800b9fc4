"""How many calls a server takes at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from grpc_common.core.errors import StatusError

_PUSHBACK_MS = 500
"""What a refused client is told to wait: long enough for a call of ordinary length to make room."""


class Admission:
    """Counts the calls in flight, and refuses those over a bound at once instead of queueing them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_flight = 0
        self.arrivals = 0
        """How many calls have come, admitted or not."""

    @contextmanager
    def admit(self, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
        """Hold a place for a call.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, since all places are taken. Retrying clients are
                told when to come back, in the form that gRPC has for it and in RetryInfo.

        """
        self.arrivals += 1
        if self.in_flight >= self._limit:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(_PUSHBACK_MS)),))
            raise _full(self._limit)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


def _full(limit: int) -> StatusError:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=_PUSHBACK_MS * 1_000_000))
    message = f"the server is busy with {limit} calls, which is all that it takes at a time"
    return StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, retry)
