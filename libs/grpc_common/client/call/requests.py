"""What a call sends: its metadata, and the requests of a stream, which another attempt may send again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import grpc

_END = object()

_OVER = (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError)
"""What writing to a call that has ended raises."""


class Requests:
    """The requests of a call, each attempt of which gets an iterator of its own.

    As long as the first request has not been sent, the next attempt gets it again. Who reads the caller's
    iterable is one task, that of the first attempt, as long as there is no other: a generator may hold what
    belongs to its task, such as a span or a timeout.

    Args:
        requests: an iterable of either kind.

    """

    def __init__(self, requests: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._rest = aiter(requests) if isinstance(requests, AsyncIterable) else _as_async(requests)
        self._first: Any = _END
        self._came: asyncio.Future[None] | None = None
        self._attempts = 0
        self._senders: list[asyncio.Task[None]] = []
        self._is_sent = False
        self.error: BaseException | None = None
        """What the caller's iterable has raised."""

    def send_to(self, attempt: Any) -> None:
        """Have a task write them to an attempt, which is cancelled if the iterable raises something.

        What grpc.aio itself has for iterators makes a cancelled call of everything that fails.
        """
        self._senders.append(asyncio.ensure_future(self._send_to(attempt, self.attempt())))

    async def _send_to(self, attempt: Any, requests: AsyncIterator[Any]) -> None:
        try:
            async for request in requests:
                await attempt.write(request)
            await attempt.done_writing()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (the caller gets it)
            if self.error is None and isinstance(error, _OVER):
                return  # the attempt's status says why
            self.error = self.error or error
            attempt.cancel()

    def attempt(self) -> AsyncIterator[Any]:
        """Return all requests for one more attempt."""
        self._attempts += 1
        return self._requests(self._attempts)

    def take_back(self) -> bool:
        """Have the attempts until now send nothing more; return False if one has sent a request."""
        if self._is_sent:
            return False
        self._attempts += 1
        return True

    async def _requests(self, attempt: int) -> AsyncIterator[Any]:
        try:
            await self._read_first()
            if self._first is _END or attempt != self._attempts:
                return
            yield self._first
            if attempt != self._attempts:
                return
            self._is_sent = True
            async for request in self._rest:
                yield request
        except (Exception, asyncio.CancelledError) as error:
            self.error = error
            raise

    async def _read_first(self) -> None:
        if self._came is not None:  # the attempt that reads it may have failed meanwhile
            await asyncio.shield(self._came)
            if self.error is not None:
                raise self.error
            return
        self._came = asyncio.get_running_loop().create_future()
        try:
            self._first = await anext(self._rest, _END)
        finally:
            self._came.set_result(None)

    def close(self) -> None:
        """Wait no longer for requests: the call has ended, and nobody else may read the caller's iterable."""
        for sender in self._senders:
            sender.cancel()
        self._senders.clear()


async def _as_async(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


def check_metadata(metadata: Iterable[tuple[object, object]]) -> None:
    """Raise what grpc.aio would raise; with a stream it does so in a task of its own, and writers hang.

    Raises:
        TypeError: a key is no text, or a value neither text nor bytes.
        UnicodeEncodeError: text has half a character (a surrogate) in it.

    """
    for key, value in metadata:
        for part in (key, value):
            if isinstance(part, str):
                part.encode()
            elif part is key or not isinstance(part, bytes):
                raise TypeError(f"metadata {key!r}: expected str, or bytes for a value, not {type(part)}")
