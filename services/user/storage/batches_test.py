import asyncio

import pytest

from services.user.storage.batches import Batches


class Work:
    """Settles batches of numbers once the test lets it: each is its double, a negative one an error."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.cancelled = 0
        self.may_go_on = asyncio.Event()

    async def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        try:
            await self.may_go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if 13 in items:
            raise OSError("the disk is gone")
        return [2 * item if item >= 0 else ValueError(str(item)) for item in items]


async def begin(batches: Batches[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Have all items wait, in their order."""
    tasks = [asyncio.create_task(batches.settle(item)) for item in items]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_items_that_wait_share_a_batch():
    """The first come at once, what comes meanwhile goes together, and each has its own result."""
    work = Work()
    tasks = await begin(Batches(work, identity=lambda item: item), 1, 2, 3, -4, 5)
    assert work.batches == [[1], [2]]
    work.may_go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [repr(result) for result in results] == ["2", "4", "6", "ValueError('-4')", "10"]
    assert work.batches == [[1], [2], [3, -4, 5]]


async def test_equal_items_are_in_different_batches():
    """Of equal items one is in a batch; the other has a later one, and both have their result."""
    work = Work()
    tasks = await begin(Batches(work, identity=lambda item: item), 1, 2, 7, 7, 8, 7)
    work.may_go_on.set()
    assert await asyncio.gather(*tasks) == [2, 4, 14, 14, 16, 14]
    assert sorted(map(sorted, work.batches[2:])) == [[7], [7], [7, 8]]


async def test_failed_work_is_every_items_error():
    """What the work raises each item of its batch raises, and the next batch is done."""
    work = Work()
    batches = Batches(work, identity=lambda item: item)
    tasks = await begin(batches, 1, 2, 13, 4)
    work.may_go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [int, int, OSError, OSError]
    assert await batches.settle(5) == 10


async def test_batch_is_cancelled_with_its_last_caller():
    """A batch goes on while one caller waits for it, and is cancelled with the last."""
    work = Work()
    batches = Batches(work, identity=lambda item: item)
    first, second, third, fourth = await begin(batches, 1, 2, 3, 4)
    first.cancel()
    await asyncio.wait([first])
    while len(work.batches) < 3:
        await asyncio.sleep(0)
    assert (work.cancelled, work.batches) == (1, [[1], [2], [3, 4]])
    third.cancel()
    await asyncio.wait([third])
    work.may_go_on.set()
    assert await asyncio.gather(second, fourth) == [4, 8]
    assert work.cancelled == 1


async def test_item_that_is_cancelled_while_it_waits_is_not_done():
    """Who is cancelled before its batch begins is in none."""
    work = Work()
    tasks = await begin(Batches(work, identity=lambda item: item), 1, 2, 3, 4)
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    work.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    assert await asyncio.gather(tasks[0], tasks[1], tasks[3]) == [2, 4, 8]
    assert work.batches == [[1], [2], [4]]
