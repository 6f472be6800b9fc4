"""The end of calls that take longer than they may."""

import asyncio
import contextvars
import time
from itertools import takewhile
from typing import Protocol

_LEAST_WAIT = 0.005
"""Seconds between two looks at least, so that calls which end together are ended together."""


class Expiring(Protocol):
    """What has a deadline."""

    start: float
    """By time.perf_counter()."""

    def expire(self) -> None:
        """End it, since its time is over."""


class Deadlines:
    """Expires calls that all have the same time to live.

    They end in the order in which they began, so that one dictionary and one timer serve all of
    them: a call that ends in time costs an insertion and a removal.

    Args:
        seconds: what a call may take; None for ever.

    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._calls: dict[Expiring, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Expiring) -> None:
        """Expire `call` in time, unless it is removed before."""
        if self.seconds is None:
            return
        self._calls[call] = None
        if self._timer is None:
            self._look_in(self.seconds)

    def remove(self, call: Expiring) -> None:
        """Forget a call, which may be known or not."""
        self._calls.pop(call, None)

    def _look_in(self, seconds: float) -> None:
        loop, delay = asyncio.get_running_loop(), max(seconds, _LEAST_WAIT)
        # In no call's context: the timer would hold that call.
        self._timer = loop.call_later(delay, self._look, context=contextvars.Context())

    def _look(self) -> None:
        self._timer = None
        assert self.seconds is not None
        latest = time.perf_counter() - self.seconds
        overdue = list(takewhile(lambda call: call.start <= latest, self._calls))
        for call in overdue:
            del self._calls[call]
            call.expire()
        if self._calls:
            self._look_in(next(iter(self._calls)).start - latest)
