"""Ends a process in time once a signal has told it to end, whatever still runs in it.

Kubernetes kills a pod at the end of terminationGracePeriodSeconds. Before that the process is to
end by itself and to say what held it up: a handler that ignores its cancellation, a thread that
does not return, a resource of the service that does not close.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

import structlog

from grpc_common.observe import stderr

log = structlog.get_logger()

BOUND = 5.0
"""Seconds that the process has to end beyond the delay and the grace of its server's drain.

The library itself takes less: at most 1 s to stop the server, and 2 s to export the last spans.
"""

_MARGIN = 0.5
"""Seconds of BOUND for the process to end when it is forced to."""

_FORCED = 1
"""The exit code of a process that was not able to end by itself."""

_SHOWN = 5
"""How many tasks and threads the log names."""

_BY_SIGNAL = 128
"""A shell adds the signal's number to it for the exit code of a process that a signal has ended."""

_is_bounded: ContextVar[bool] = ContextVar("is_bounded", default=False)


@contextmanager
def bounded() -> Iterator[None]:
    """Have what runs in the block end the process when its time is over; for the program that owns it."""
    token = _is_bounded.set(True)
    try:
        yield
    finally:
        _is_bounded.reset(token)


def exit_on_sigterm() -> None:
    """Have SIGTERM raise SystemExit until a server takes the signal over, so that what is open is closed.

    Without a handler the first process of a container, which the service is, would never get the signal.
    """
    signal.signal(signal.SIGTERM, _exit)


def _exit(signum: int, _frame: FrameType | None) -> None:
    with suppress(RuntimeError):  # nothing runs yet
        end_within(0, asyncio.get_running_loop())
    sys.exit(_BY_SIGNAL + signum)


def is_bounded() -> bool:
    """Return whether this runs in `bounded`."""
    return _is_bounded.get()


def end_within(seconds: float, loop: asyncio.AbstractEventLoop) -> None:
    """End the process within `seconds` and BOUND from now, if it has not ended by itself.

    It may be called by a signal handler. The thread waits for nothing that `loop` does: a handler that
    blocks it may be what holds the process up.
    """
    timer = threading.Timer(seconds + BOUND - _MARGIN, _force, [loop])
    timer.daemon = True
    timer.start()


def _force(loop: asyncio.AbstractEventLoop) -> None:
    try:
        tasks = sorted({_name(task) for task in asyncio.all_tasks(loop)})
        threads = _threads()
        log.error(
            "the process did not end in time and is ended", tasks=tasks[:_SHOWN], threads=threads[:_SHOWN]
        )
        stderr.flush(_MARGIN / 2)
    finally:
        os._exit(_FORCED)


def _threads() -> list[str]:
    """Return what threads that must end run; one of a pool that has nothing to do holds nothing up."""
    frames = sys._current_frames()  # noqa: SLF001 (its underscore says that it is for CPython)
    running = {
        thread.name: frames[thread.ident].f_code
        for thread in threading.enumerate()
        if not thread.daemon and thread.ident in frames
    }
    return sorted(
        f"{name} in {code.co_qualname}"
        for name, code in running.items()
        if (code.co_name, Path(code.co_filename).parent.name) != ("_worker", "futures")
    )


def _name(task: asyncio.Task[object]) -> str:
    return getattr(task.get_coro(), "__qualname__", task.get_name())
