"""A stream of responses that is read to its end in a thread.

grpc.aio wakes the event loop for each message (about 50 µs of CPU); the thread waits in C-core for the
next one itself (10 µs).
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc.experimental import ChannelOptions  # type: ignore[attr-defined]  # not in types-grpcio

BLOCKING_OPTIONS = ((ChannelOptions.SingleThreadedUnaryStream, 1),)
"""Options of a channel whose streams are read in the thread that iterates; other threads may cancel them."""


class WholeStream:
    """A call whose messages come all at once; for its observers it is like a call of grpc.aio.

    Args:
        call: what grpc's blocking stub has returned; it may be iterated and cancelled.

    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._reading = asyncio.get_running_loop().run_in_executor(None, self._read)

    def _read(self) -> list[Any] | None:
        try:
            return list(self._call)
        except grpc.RpcError:  # it stands in the call
            return None

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` with this call in the event loop, once it has ended."""
        self._reading.add_done_callback(lambda _reading: callback(self))

    def cancel(self) -> bool:
        """Cancel the call."""
        cancelled: bool = self._call.cancel()
        return cancelled

    async def code(self) -> grpc.StatusCode:
        """Return the code with which the call has ended."""
        code: grpc.StatusCode = self._call.code()
        return code

    async def read(self) -> tuple[list[Any], grpc.aio.Metadata]:
        """Return the messages and the trailing metadata; who is cancelled while it waits cancels the call.

        Raises:
            grpc.aio.AioRpcError: the call's error.

        """
        try:
            messages = await asyncio.shield(self._reading)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if messages is None:
            raise self._error()
        return messages, _metadata(self._call.trailing_metadata())

    def _error(self) -> grpc.aio.AioRpcError:
        call = self._call
        headers, trailers = _metadata(call.initial_metadata()), _metadata(call.trailing_metadata())
        return grpc.aio.AioRpcError(call.code(), headers, trailers, call.details(), call.debug_error_string())


def _metadata(pairs: Any) -> grpc.aio.Metadata:
    return grpc.aio.Metadata.from_tuple(tuple(pairs or ()))
