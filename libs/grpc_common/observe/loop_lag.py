"""Measures how late the event loop is, and tells in the log what blocks it.

Code that blocks the loop, such as time.sleep or a driver without async in a coroutine, holds up every
call of the process; from outside that shows as failing probes alone.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry

from grpc_common.core.registries import per_registry

log = structlog.get_logger()

_INTERVAL = 0.25
"""Seconds between two looks at the clock: four callbacks a second, some 20 µs."""

_BLOCKED = 0.5
"""Seconds that the loop may be late before the log tells; health probes give up after one."""

_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_FRAMES = 10
"""Frames of the stack that the log tells, the innermost."""

_SELECTORS = ("selectors", "grpc_common.server.queue.selector")
"""The modules whose `select` waits for events."""

_END = 1.0
"""Seconds for the thread to end; it takes as long as a line of the log."""


@per_registry
def lag_of(registry: CollectorRegistry) -> prometheus_client.Histogram:
    """Return the histogram `grpc_server_event_loop_lag_seconds` of a registry.

    A histogram, since a gauge would forget what was between two scrapes.
    """
    return prometheus_client.Histogram(
        "grpc_server_event_loop_lag_seconds",
        "Seconds by which the event loop was late, looked at four times a second.",
        buckets=_BUCKETS,
        registry=registry,
    )


_watched: dict[asyncio.AbstractEventLoop, _Watch] = {}


@contextmanager
def watching_loop(lag: prometheus_client.Histogram | None) -> Iterator[None]:
    """Measure in the running loop until the block ends; the log tells what blocks it, with or without `lag`.

    Servers of one loop share its watch, so that a blockage is told once.
    """
    loop = asyncio.get_running_loop()
    watch = _watched.get(loop)
    if watch is None:
        watch = _watched[loop] = _Watch(loop)
    watch.lags.append(lag)
    try:
        yield
    finally:
        watch.lags.remove(lag)
        if not watch.lags:
            del _watched[loop]
            watch.stop()


class _Watch:
    """Watches the loop in whose thread it is made."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lags: list[prometheus_client.Histogram | None] = []
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._blocked = False
        self._due = time.monotonic() + _INTERVAL
        self._timer = loop.call_later(_INTERVAL, self._turn)
        self._thread = threading.Thread(target=self._watch, name="event loop watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._timer.cancel()
        self._stopped.set()
        self._thread.join(_END)

    def _turn(self) -> None:
        now = time.monotonic()
        late = max(0.0, now - self._due)
        for lag in {lag for lag in self.lags if lag is not None}:
            lag.observe(late)
        self._due = now + _INTERVAL
        self._timer = self._loop.call_later(_INTERVAL, self._turn)
        if self._blocked:
            self._blocked = False
            log.warning("event loop runs again", seconds=round(late + _INTERVAL, 2))

    def _watch(self) -> None:
        """Wake up when the loop would be too late, which it is not as a rule: twice a second at most."""
        while not self._stopped.wait(max(self._due + _BLOCKED - time.monotonic(), _INTERVAL / 5)):
            if not self._blocked and time.monotonic() - self._due > _BLOCKED:
                self._tell()

    def _tell(self) -> None:
        stack = _stack(sys._current_frames().get(self._loop_thread))  # noqa: SLF001 (documented, for debuggers)
        if stack:
            # First, since the loop may run again at once.
            self._blocked = True
            log.error("event loop blocked", where=stack[0], frames=stack)


def _stack(frame: FrameType | None) -> list[str]:
    """Return where a thread is, the innermost first; nothing if the loop only waits for events.

    It does that although it is late when the whole process stood still.
    """
    if frame is None or (frame.f_code.co_name == "select" and frame.f_globals.get("__name__") in _SELECTORS):
        return []
    places: list[str] = []
    while frame is not None and len(places) < _FRAMES:
        places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return places
