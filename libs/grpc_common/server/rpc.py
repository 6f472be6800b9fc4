"""What the life of a call needs of an engine: the part that really sends and receives."""

from collections.abc import Callable
from typing import Any, Protocol

import grpc

CANCELLATION_DELAY = 0.001
"""Seconds. A client that cancels while requests are awaited looks, until gRPC's next event, like one that
has sent all that it had; a wait of no time misses 3 in 100."""


class Rpc(Protocol):
    """One call on its engine, from the moment that its headers are there.

    Everything is called in the event loop's thread. An engine makes one, hands it to
    `Lifecycle.live` in the task of the call, and sends what that returns with the status OK, unless
    the call was answered before.
    """

    context: grpc.aio.ServicerContext[Any, Any]
    """The engine's own context of the call: metadata, peer, deadline, compression."""

    is_gone: bool
    """Whether something could not be sent, since the caller is gone."""

    async def read(self) -> bytes | None:
        """Return the caller's next message, or None after the last one and once the caller is gone."""

    async def open(self, headers: tuple[tuple[str, str | bytes], ...]) -> None:
        """Send the headers, which otherwise go with the first message."""

    async def write(self, message: bytes) -> None:
        """Send a message, and return when there is room for the next one.

        Calls may overlap; each waits for those before.

        Raises:
            asyncio.CancelledError: the caller is gone.

        """

    async def flush(self) -> None:
        """Return once the kernel has been given all messages.

        Raises:
            asyncio.CancelledError: the caller is gone.

        """

    async def answer(self, status: grpc.Status) -> None:
        """End the call with a status that is not OK; nothing can be sent after it."""

    def interrupt(self) -> None:
        """Cancel the task of the call."""

    def when_left(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the status has left, and in any case when the task is over."""
