"""Ends a process in time once its server has drained, whatever still runs in it.

Kubernetes kills a pod at the end of terminationGracePeriodSeconds. Before that the process is to
end by itself and to say what held it up: a handler that ignores its cancellation, a thread that
does not return, a resource of the service that does not close.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import structlog

from grpc_common.observe import stderr

log = structlog.get_logger()

BOUND = 5.0
"""Seconds from the end of the drain to the end of the process.

The library itself takes less: at most 1 s to stop the server, and 2 s to export the last spans.
"""

_MARGIN = 0.5
"""Seconds of BOUND for the process to end when it is forced to."""

_FORCED = 1
"""The exit code of a process that was not able to end by itself."""

_SHOWN = 5
"""How many tasks and threads the log names."""

_drained: ContextVar[Callable[[], None]] = ContextVar("drained")


@contextmanager
def bounded() -> Iterator[None]:
    """Have the process end within BOUND once `drained` is called in the block.

    For the program that owns the process: nothing of it goes on after that.
    """
    timers: list[threading.Timer] = []

    def start() -> None:
        timer = threading.Timer(BOUND - _MARGIN, _force, [asyncio.get_running_loop()])
        timer.daemon = True
        timer.start()
        timers.append(timer)

    token = _drained.set(start)
    try:
        yield
    finally:
        _drained.reset(token)


def drained() -> None:
    """Say that the server in this process has drained; without `bounded` it means nothing."""
    if start := _drained.get(None):
        start()


def _force(loop: asyncio.AbstractEventLoop) -> None:
    tasks = sorted({_name(task) for task in asyncio.all_tasks(loop)})
    threads = sorted({thread.name for thread in threading.enumerate() if not thread.daemon})
    log.error("the process did not end in time and is ended", tasks=tasks[:_SHOWN], threads=threads[:_SHOWN])
    stderr.flush(_MARGIN / 2)
    os._exit(_FORCED)


def _name(task: asyncio.Task[object]) -> str:
    return getattr(task.get_coro(), "__qualname__", task.get_name())
