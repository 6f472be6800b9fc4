"""Work that goes on in the background for as long as a program runs, whatever happens to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

import structlog

log = structlog.get_logger()

PAUSE = 1.0
"""Seconds before work that has failed starts again."""


async def supervise(task: str, work: Callable[[], Awaitable[object]], *, pause: float = PAUSE) -> NoReturn:
    """Run `work`, and again each time that it ends, until this task is cancelled.

    Whatever else ends it is logged under the name `task`: an exception of any kind, and a
    CancelledError that it raises itself, as when it awaits a task that somebody else has cancelled.
    """
    while True:
        try:
            await work()
            if not is_cancelled():
                log.error("background task ended, it starts again", task=task)
        except KeyboardInterrupt:
            raise
        except BaseException:
            if is_cancelled():
                raise
            log.exception("background task failed, it starts again", task=task)
        if is_cancelled():  # the work has swallowed it
            raise asyncio.CancelledError
        await asyncio.sleep(pause)


def is_cancelled() -> bool:
    """Return whether the current task was cancelled, whatever the code that it ran has made of it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@asynccontextmanager
async def supervised(task: str, work: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """`supervise` some work until the end of the block."""
    running = asyncio.create_task(supervise(task, work))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
