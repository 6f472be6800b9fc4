"""grpc.aio as the engine of a server's calls.

Whatever streams on the wire looks the same as what does not, so each method is registered as one
that streams its requests: then grpc.aio hands over a call as soon as its headers are there, and
not only when a message has come. The answer to a call with one response is sent together with
its status, as grpc.aio does it, for which such a method may not stream its responses.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, override

import grpc

from grpc_common.server.handler import Handler
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.server.rpc import Rpc

type _Context = grpc.aio.ServicerContext[Any, Any]
type _MethodHandler = grpc.RpcMethodHandler[Any, Any]


class AioRpc(Rpc):
    """A call of grpc.aio."""

    __slots__ = ("_aborted", "_task", "context", "is_gone")

    def __init__(self, context: _Context) -> None:
        self.context = context
        self._task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # grpc's
        self._aborted: grpc.aio.BaseError | None = None
        self.is_gone = False

    @override
    async def read(self) -> bytes | None:
        message = await self.context.read()
        return None if message is grpc.aio.EOF else message

    @override
    async def write(self, message: bytes) -> None:
        try:
            await self.context.write(message)
        except grpc.aio.InternalError:
            # grpc.aio tells of it by a cancellation too, but only a moment later.
            self.is_gone = True
            raise asyncio.CancelledError from None

    @override
    async def answer(self, status: grpc.Status) -> None:
        try:
            await self.context.abort_with_status(status)
        except grpc.aio.BaseError as error:
            self._aborted = error

    @override
    def interrupt(self) -> None:
        self._task.cancel()

    @override
    def when_left(self, callback: Callable[[], None]) -> None:
        self._task.add_done_callback(lambda _task: callback())

    def end(self) -> None:
        """Raise what grpc.aio wants to see at the end of a call that was answered."""
        if self._aborted is not None:
            error, self._aborted = self._aborted, None
            raise error


class AioEngine(grpc.aio.ServerInterceptor):
    """Lets a `Lifecycle` live the calls of a grpc.aio server."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._adapted: dict[str, _MethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MethodHandler:
        """Return the method that a call asks for as it is registered with grpc.aio."""
        path = handler_call_details.method
        if path not in self._adapted:
            try:
                handler = await continuation(handler_call_details)
            except Exception as error:  # noqa: BLE001 (gRPC would tell the caller its text)
                return self._adapt(self._lifecycle.refuse(path, error))
            if handler is None:
                return self._adapt(self._lifecycle.refuse(path))
            self._adapted[path] = self._adapt(self._lifecycle.adopt(path, handler))
        return self._adapted[path]

    def _adapt(self, handler: Handler) -> _MethodHandler:
        async def respond(_requests: Any, context: _Context) -> bytes:
            rpc = AioRpc(context)
            message = await self._lifecycle.live(handler, rpc)
            rpc.end()
            return message

        if handler.streams_responses:
            return grpc.stream_stream_rpc_method_handler(respond)
        return grpc.stream_unary_rpc_method_handler(respond)
