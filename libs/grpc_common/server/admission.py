"""How many calls a server takes at a time."""

import grpc

from grpc_common.core.errors import StatusError
from grpc_common.core.status_errors import retry_later

_PUSHBACK = 0.5
"""Seconds. What a refused client is told to wait: long enough for a call of ordinary length to make room."""


class Admission:
    """Gives calls a place, from their headers until their status has left, and refuses those over a bound.

    A call that was refused has a status to send, too, and so counts until that has left.

    Args:
        limit: how many calls have a place at a time.
        what: what they are called in the refusal.

    """

    def __init__(self, limit: int, what: str = "calls") -> None:
        self._limit = limit
        self._what = what
        self.in_flight = 0
        """How many calls have begun and not left."""
        self.admitted = 0
        """How many of these have a place."""
        self.arrivals = 0
        """How many calls have come, admitted or not."""

    def arrived(self) -> None:
        """Count a call whose headers have come."""
        self.arrivals += 1
        self.in_flight += 1

    def admit(self) -> None:
        """Take a place.

        Raises:
            StatusError: RESOURCE_EXHAUSTED with a time to come back, since all places are taken.

        """
        if self.admitted >= self._limit:
            raise pushback(
                f"the server is busy with {self._limit} {self._what}, which is all that it takes at a time"
            )
        self.admitted += 1

    def left(self, *, admitted: bool) -> None:
        """Count a call whose status has left, and take its place back if it was admitted."""
        self.in_flight -= 1
        self.admitted -= admitted


def pushback(message: str) -> StatusError:
    """Return RESOURCE_EXHAUSTED with a time to come back, in gRPC's own form for it and in RetryInfo."""
    return retry_later(grpc.StatusCode.RESOURCE_EXHAUSTED, message, _PUSHBACK)
