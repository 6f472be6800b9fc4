"""Work that goes on in the background for as long as a program runs, whatever happens to it."""

import asyncio
from collections.abc import Awaitable, Callable
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
            log.error("background task ended, it starts again", task=task)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if is_cancelled(error):
                raise
            log.exception("background task failed, it starts again", task=task)
        await asyncio.sleep(pause)


def is_cancelled(error: BaseException) -> bool:
    """Return whether `error`, which the current task has caught, is the task's own cancellation."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
