"""A stream of responses that is read to its end in a thread.

grpc.aio wakes the event loop for each message (about 50 µs of CPU); the thread waits in C-core for the
next one itself (10 µs).
"""

import asyncio
from collections.abc import Generator
from typing import Any

import grpc


class WholeStream:
    """A call whose messages come all at once, to whom awaits it.

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

    def cancel(self) -> bool:
        """Cancel the call."""
        cancelled: bool = self._call.cancel()
        return cancelled

    def __await__(self) -> Generator[Any, None, tuple[list[Any], grpc.aio.Metadata]]:
        """Wait for the messages and the trailing metadata; who is cancelled meanwhile cancels the call.

        Raises:
            grpc.aio.AioRpcError: the call's error.

        """
        return self._read_to_the_end().__await__()

    async def _read_to_the_end(self) -> tuple[list[Any], grpc.aio.Metadata]:
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
