import asyncio

import pytest
from structlog.testing import capture_logs

from grpc_common.core.background import supervise


class Fatal(BaseException):
    """What extension modules raise past `except Exception`."""


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), asyncio.CancelledError(), SystemExit(1), Fatal(), None], ids=repr
)
async def test_work_starts_again_whatever_ends_it(error):
    """Work that ends, or raises anything at all, is told of by name and starts again."""
    again = asyncio.Event()
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > 1:
            again.set()
            await asyncio.Event().wait()
        if error is not None:
            raise error

    with capture_logs() as logged:
        task = asyncio.create_task(supervise("the work", work, pause=0))
        await asyncio.wait_for(again.wait(), 10)
    assert [line["task"] for line in logged] == ["the work"]
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("error", [ValueError("a bug"), None], ids=repr)
async def test_cancelled_work_does_not_start_again(error):
    """Work that swallows its cancellation, or raises something else, ends with it."""
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    task = asyncio.create_task(supervise("the work", work, pause=0))
    await begun.wait()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=10)
    assert done
    with pytest.raises(asyncio.CancelledError if error is None else ValueError):
        await task
