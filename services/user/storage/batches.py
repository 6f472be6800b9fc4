"""Work that is cheaper done together: what comes while some is underway waits, and is done at once then."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

_AT_ONCE = 2
"""Batches underway: while the disk has one, the next is made. More would only be smaller."""

_MOST = 200
"""Items of a batch, so that none waits long for the others."""


class Batches[Item, Result]:
    """Settles items, as many at a time as have come meanwhile: one by one while few come.

    Args:
        work: settles a batch; returns the result of each item, or the exception that is raised for it.
        identity: what no two items of a batch may have the same; the second one's batch is a later one.

    """

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[list[Result | Exception]]],
        identity: Callable[[Item], Hashable],
    ) -> None:
        self._work = work
        self._identity = identity
        self._waiting: list[_Entry[Item, Result]] = []
        self._underway: set[asyncio.Task[None]] = set()

    async def settle(self, item: Item) -> Result:
        """Return the result of `item`. A batch whose callers have all been cancelled is cancelled.

        Raises:
            Exception: what `work` has returned for the item, or raised.

        """
        entry: _Entry[Item, Result] = _Entry(item, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._begin()
        try:
            return await entry.result
        except asyncio.CancelledError:
            if entry.batch is not None and all(other.result.cancelled() for other in entry.batch):
                entry.task.cancel()
            raise

    def _begin(self) -> None:
        while len(self._underway) < _AT_ONCE and (batch := self._take()):
            # Of no call's context: the batch is of several.
            task = asyncio.get_running_loop().create_task(self._settle(batch), context=contextvars.Context())
            for entry in batch:
                entry.batch, entry.task = batch, task
            self._underway.add(task)
            task.add_done_callback(self._ended)

    def _take(self) -> list[_Entry[Item, Result]]:
        chosen: dict[Hashable, _Entry[Item, Result]] = {}
        left: list[_Entry[Item, Result]] = []
        for entry in self._waiting:
            if entry.result.done():  # cancelled
                continue
            identity = self._identity(entry.item)
            if len(chosen) < _MOST and identity not in chosen:
                chosen[identity] = entry
            else:
                left.append(entry)
        self._waiting = left
        return list(chosen.values())

    async def _settle(self, batch: list[_Entry[Item, Result]]) -> None:
        results: list[Result | Exception]
        try:
            results = await self._work([entry.item for entry in batch])
        except Exception as error:  # noqa: BLE001 (each caller raises it)
            results = [error] * len(batch)
        for entry, result in zip(batch, results, strict=True):
            if entry.result.done():
                continue
            if isinstance(result, Exception):
                entry.result.set_exception(result)
            else:
                entry.result.set_result(result)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._underway.discard(task)
        self._begin()


@dataclass(slots=True, eq=False)
class _Entry[Item, Result]:
    item: Item
    result: asyncio.Future[Result]
    batch: list[_Entry[Item, Result]] | None = None
    task: asyncio.Task[None] = None  # type: ignore[assignment] # set with the batch
