"""Work that handlers leave behind, and that a server waits for before it ends."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

import structlog

from grpc_common.core.calls import context_without_parent

log = structlog.get_logger()


class Background:
    """The tasks that the handlers of a server have left behind."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._over = False

    def start(self, work: Coroutine[Any, Any, object], loop: asyncio.AbstractEventLoop) -> None:
        """Run `work` in a task in `loop`, with the context variables of whoever asks, from any thread.

        Raises:
            TypeError: it is no coroutine.

        """
        if not asyncio.iscoroutine(work):
            raise TypeError(f"run_in_background takes a coroutine, as `work()` is one, not {work!r}")
        # Its calls have their own deadlines: the call that it comes from is over soon.
        context = context_without_parent()
        loop.call_soon_threadsafe(self._start, work, context, context=context)

    def _start(self, work: Coroutine[Any, Any, object], context: contextvars.Context) -> None:
        name = getattr(work, "__qualname__", repr(work))
        if self._over:  # what it needs is closed, or will be at once
            work.close()
            log.warning("background task was cancelled", task=name)
            return
        task = asyncio.get_running_loop().create_task(_logged(name, work), name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def names(self) -> list[str]:
        """Return what the tasks run."""
        return sorted(task.get_name() for task in self._tasks)

    async def ended(self) -> None:
        """Wait until no task is left."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self, grace: float) -> None:
        """Cancel what is left, and what is still to come; wait `grace` seconds at most for it to end."""
        self._over = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)


async def _logged(name: str, work: Coroutine[Any, Any, object]) -> None:
    try:
        await work
    except KeyboardInterrupt:
        raise
    except asyncio.CancelledError:
        log.warning("background task was cancelled", task=name)
        raise
    except BaseException:  # SystemExit in a task would end the event loop
        log.exception("background task failed", task=name)
