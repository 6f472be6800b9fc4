"""What the caller of a stub holds: the calls of grpc.aio's API, of each type."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any

import grpc

from grpc_common.client.call.call import ClientCall
from grpc_common.core.background import is_cancelled
from grpc_common.core.calls import CallType


class _Handle:
    def __init__(self, call: ClientCall) -> None:
        self._call = call

    def cancelled(self) -> bool:
        return self._call.is_done and self._call.code() is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._call.is_done

    def time_remaining(self) -> float | None:
        return max(0.0, self._call.deadline - asyncio.get_running_loop().time())

    def cancel(self) -> bool:
        return self._call.cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have `callback` called with this, or with another handle of the same call if this is forgotten."""
        call = self._call
        if call.is_done:
            callback(self)
            return
        # A stream that its caller has forgotten is cancelled, so that nothing else may hold this.
        this, kind, loop = weakref.ref(self), type(self), asyncio.get_running_loop()
        # What a callback raises belongs to the event loop's handler, not to whoever ends the call.
        call.on_end(lambda: loop.call_soon(callback, this() or kind(call)))

    async def initial_metadata(self) -> grpc.aio.Metadata:
        call = self._call
        while (attempt := await call.current()) is not None:
            metadata: grpc.aio.Metadata = await attempt.initial_metadata()
            if not attempt.done():
                call.is_committed = True
                return metadata
            if await call.is_last(attempt):
                return metadata
        return _status(call.error).initial_metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        await self._call.end()
        if self._call.error is not None:
            return _status(self._call.error).trailing_metadata()
        metadata: grpc.aio.Metadata = await self._call.attempt.trailing_metadata()
        return metadata

    async def code(self) -> grpc.StatusCode:
        await self._call.end()
        return self._call.code()

    async def details(self) -> str:
        await self._call.end()
        if self._call.error is not None:
            return _status(self._call.error).details() or ""
        details: str = await self._call.attempt.details()
        return details

    async def debug_error_string(self) -> str:
        await self._call.end()
        return "" if self._call.error is None else _status(self._call.error).debug_error_string() or ""

    async def wait_for_connection(self) -> None:
        while (attempt := await self._call.current()) is not None:
            try:
                await attempt.wait_for_connection()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                if await self._call.is_last(attempt):
                    break
            else:
                return
        await self._call.end()
        self._call.raise_error()


def _status(error: BaseException | None) -> grpc.aio.AioRpcError:
    if isinstance(error, grpc.aio.AioRpcError):
        return error
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, type(error).__name__)


class _OneResponse(_Handle):
    def __await__(self) -> Generator[Any, None, Any]:
        return self._call.wait().__await__()


class _ManyResponses(_Handle):
    def __del__(self) -> None:
        # Who breaks out of a stream wants no more of it; grpc.aio does the same.
        self._call.forget()

    async def read(self) -> Any:
        try:
            return await self._next()
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def _next(self) -> Any:
        call = self._call
        while (attempt := await call.current()) is not None:
            message = await self._read(attempt)
            if message is not grpc.aio.EOF:
                call.is_committed = True
                return message
            if await call.is_last(attempt):
                break
        await call.end()
        call.raise_error()
        return grpc.aio.EOF

    async def _read(self, attempt: Any) -> Any:
        """Return the next message; EOF, too, if there is none because the attempt has failed."""
        try:
            return await attempt.read()
        except grpc.aio.AioRpcError:
            return grpc.aio.EOF
        except asyncio.CancelledError:
            if is_cancelled() or self._call.is_cancelled:
                raise
            return grpc.aio.EOF  # the caller's own iterator of requests has failed
        except Exception as error:
            self._call.abort(error)
            raise

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


class _ManyRequests(_Handle):
    async def write(self, request: Any) -> None:
        self._call.check_writer()
        try:
            if not await self._write(request):
                raise asyncio.InvalidStateError("RPC already finished.")
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def _write(self, request: Any) -> bool:
        call = self._call
        while (attempt := await call.current()) is not None:
            try:
                await attempt.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                if not attempt.done():
                    raise
                if await call.is_last(attempt):
                    break
            else:
                call.is_committed = True
                return True
        await call.end()
        if not call.is_cancelled:
            call.raise_error()
        return False

    async def done_writing(self) -> None:
        call = self._call
        call.check_writer()
        while (attempt := await call.current()) is not None:
            try:
                await attempt.done_writing()
            except grpc.aio.InternalError:
                pass  # the attempt fails, and its status says why
            else:
                if not attempt.done():
                    call.is_committed = True
                    return
            if await call.is_last(attempt):
                return


class _UnaryUnary(_OneResponse, grpc.aio.UnaryUnaryCall[Any, Any]):
    pass


class _StreamUnary(_ManyRequests, _OneResponse, grpc.aio.StreamUnaryCall[Any, Any]):
    pass


class _UnaryStream(_ManyResponses, grpc.aio.UnaryStreamCall[Any, Any]):
    pass


class _StreamStream(_ManyRequests, _ManyResponses, grpc.aio.StreamStreamCall[Any, Any]):
    pass


HANDLES: dict[CallType, Callable[[ClientCall], Any]] = {
    CallType.UNARY: _UnaryUnary,
    CallType.CLIENT_STREAM: _StreamUnary,
    CallType.SERVER_STREAM: _UnaryStream,
    CallType.BIDI_STREAM: _StreamStream,
}
"""Makes what the caller holds of a call, which must be made before the call begins."""
