"""The requests of a stream, which another attempt may have to send again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

_END = object()


class Requests:
    """The requests of a call, each attempt of which gets an iterator of its own.

    As long as the first request has not been sent, the next attempt gets it again.

    Args:
        requests: an iterable of either kind.

    """

    def __init__(self, requests: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._rest = _iterator(requests)
        self._first: asyncio.Future[Any] | None = None
        self.sent = False
        """Whether one has been sent, or there is none."""

    async def attempt(self) -> AsyncIterator[Any]:
        """Yield all requests for one more attempt."""
        if self._first is None:
            self._first = asyncio.ensure_future(anext(self._rest, _END))
        # The attempt may end before the caller has made its first request.
        first = await asyncio.shield(self._first)
        if first is not _END:
            yield first
            self.sent = True
            async for request in self._rest:
                yield request
        self.sent = True

    def close(self) -> None:
        """Wait no longer for the first request."""
        if self._first is not None:
            self._first.cancel()


async def _iterator(requests: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
