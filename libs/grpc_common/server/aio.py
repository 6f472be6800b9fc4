"""grpc.aio as the engine of a server's calls.

Whatever streams on the wire looks the same as what does not, so each method is registered as one
that streams its requests: then grpc.aio hands over a call as soon as its headers are there, and
not only when a message has come. A single response is sent together with its status, which is
what grpc.aio does for a method that does not stream its responses. Large ones are not: right behind the
last call of an old connection C-core closes it, and what the kernel has not sent may be lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast, override

import grpc

from grpc_common.server.handler import Handler
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.server.rpc import CANCELLATION_DELAY, Rpc

type _Context = grpc.aio.ServicerContext[Any, Any]
type _MethodHandler = grpc.RpcMethodHandler[Any, Any]


class AioRpc(Rpc):
    """A call of grpc.aio."""

    __slots__ = ("_aborted", "_sending", "_task", "context", "is_gone", "sends_status_apart")

    def __init__(self, context: _Context, *, sends_status_apart: bool) -> None:
        self.context = context
        self.sends_status_apart = sends_status_apart
        self._task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # grpc's
        self._aborted: grpc.aio.BaseError | None = None
        self._sending: asyncio.Task[BaseException | None] | None = None
        self.is_gone = False

    @override
    async def read(self) -> bytes | None:
        message = await self.context.read()
        if message is not grpc.aio.EOF:
            return cast("bytes", message)
        await asyncio.sleep(CANCELLATION_DELAY)
        return None

    @override
    async def open(self, headers: tuple[tuple[str, str | bytes], ...]) -> None:
        await self._send(self.context.send_initial_metadata, headers)

    @override
    async def write(self, message: bytes) -> None:
        await self._send(self.context.write, message)

    async def _send(self, operation: Callable[[Any], Awaitable[None]], content: Any) -> None:
        work = self._outcome(self._sending, operation, content)
        self._sending = sending = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        await asyncio.wait([sending])
        if (error := sending.result()) is not None:
            raise error

    async def _outcome(
        self,
        before: asyncio.Task[Any] | None,
        operation: Callable[[Any], Awaitable[None]],
        content: Any,
    ) -> BaseException | None:
        """Send something behind what is being sent `before`; return the exception that it raises.

        C-core takes one thing at a time, and goes on with it when who waits for it is cancelled.
        """
        if before is not None and not before.done():
            await asyncio.wait([before])
        try:
            await operation(content)
        except grpc.aio.InternalError:
            # grpc.aio tells of it by a cancellation too, but only a moment later.
            self.is_gone = True
            return asyncio.CancelledError()
        except BaseException as error:  # noqa: BLE001 (nobody may wait for it any more)
            return error
        return None

    async def _sent(self) -> None:
        while self._sending is not None and not self._sending.done():
            await asyncio.wait([self._sending])

    @override
    async def flush(self) -> None:
        await self._sent()

    @override
    async def answer(self, status: grpc.Status) -> None:
        await self._sent()
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

    async def end(self) -> None:
        """Wait for what is being sent, and raise what grpc.aio wants to see if the call was answered."""
        await self._sent()
        if self._aborted is not None:
            error, self._aborted = self._aborted, None
            raise error


class AioEngine(grpc.aio.ServerInterceptor):
    """Lets a `Lifecycle` live the calls of a grpc.aio server."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._methods: dict[str, _Method] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MethodHandler:
        """Return the method that a call asks for, as grpc.aio is to call it."""
        path = handler_call_details.method
        method = self._methods.get(path)
        if method is None:
            try:
                found = await continuation(handler_call_details)
            except Exception as error:  # noqa: BLE001 (gRPC would tell the caller its text)
                return _Method(self._lifecycle, self._lifecycle.refuse(path, error)).form
            if found is None:
                return _Method(self._lifecycle, self._lifecycle.refuse(path)).form
            method = self._methods[path] = _Method(self._lifecycle, self._lifecycle.adopt(path, found))
        return method.form


class _Method:
    """A method in the two forms that grpc.aio can call it in."""

    def __init__(self, lifecycle: Lifecycle, handler: Handler) -> None:
        self._lifecycle = lifecycle
        self._handler = handler
        self._with_status: _MethodHandler = grpc.stream_unary_rpc_method_handler(self._respond)
        self._apart: _MethodHandler = grpc.stream_stream_rpc_method_handler(self._respond_apart)

    @property
    def form(self) -> _MethodHandler:
        """The form for the next call."""
        handler = self._handler
        return self._apart if handler.streams_responses or handler.has_large_response else self._with_status

    async def _respond(self, _requests: Any, context: _Context) -> bytes:
        return await self._live(AioRpc(context, sends_status_apart=False))

    async def _respond_apart(self, _requests: Any, context: _Context) -> None:
        await self._live(AioRpc(context, sends_status_apart=True))

    async def _live(self, rpc: AioRpc) -> bytes:
        message = await self._lifecycle.live(self._handler, rpc)
        await rpc.end()
        return message
