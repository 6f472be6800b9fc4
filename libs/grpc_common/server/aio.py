"""grpc.aio as the engine of a server's calls.

Whatever streams on the wire looks the same as what does not, so each call is taken on as soon as its headers
are there, and not only when a message has come. A single response is sent together with its status, unless it
is so large that the lifecycle has sent it before.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast, override

import grpc
from grpc._cython import cygrpc  # type: ignore[import-not-found, attr-defined, unused-ignore]  # compiled

from grpc_common.server.handler import Handler
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.server.rpc import CANCELLATION_DELAY, Rpc

type _Context = grpc.aio.ServicerContext[Any, Any]
type _MethodHandler = grpc.RpcMethodHandler[Any, Any]

_TURNS = 3
"""Turns of the loop from the completion of a call's end to the cancellation of its task: a future, a task."""


class AioRpc(Rpc):
    """A call of grpc.aio."""

    __slots__ = (
        "_aborted",
        "_error",
        "_left",
        "_reading",
        "_sending",
        "_taken",
        "_turn",
        "context",
        "is_gone",
        "task",
    )

    def __init__(self, context: _Context) -> None:
        self.context = context
        self.task = asyncio.current_task()
        self.is_gone = False
        self._aborted: BaseException | None = None
        self._reading = asyncio.Lock()
        self._left: list[Callable[[], None]] = []
        self._turn: asyncio.Lock | None = None
        self._sending: Coroutine[Any, Any, None] | None = None
        self._taken: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        """What has become of the last thing that was sent, until somebody is told."""

    @override
    async def read(self) -> bytes | None:
        async with self._reading:
            message = await self.context.read()
            if message is not grpc.aio.EOF:
                return cast("bytes", message)
            await asyncio.sleep(CANCELLATION_DELAY)
            # It completes behind all that has completed by now; a cancellation has its turn in the loop then.
            await self.context.read()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        return None

    @override
    async def open(self, headers: tuple[tuple[str, str | bytes], ...]) -> None:
        async with self._writing():
            await self._room()
            self._send(self.context.send_initial_metadata(headers))
            await self._room()

    @override
    async def write(self, message: bytes) -> None:
        async with self._writing():
            await self._room()
            self._send(self.context.write(message))
            self._raise()

    @override
    async def flush(self) -> None:
        async with self._writing():
            await self._room()

    def _writing(self) -> asyncio.Lock:
        """Return what has one task at a time write: C-core takes one thing at a time."""
        if self._turn is None:
            self._turn = asyncio.Lock()
        return self._turn

    async def _room(self) -> None:
        await self._taken_all()
        self._raise()

    async def _taken_all(self) -> None:
        if self._sending is not None:
            self._taken = asyncio.get_running_loop().create_future()
            await self._taken

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self.is_gone:
            raise asyncio.CancelledError

    def _send(self, operation: Any) -> None:
        """Begin to send something. C-core goes on with it when who waits for it is cancelled.

        So it runs in no task that can be cancelled, and it needs none of its own.
        """
        self._sending = operation
        self._go_on()

    def _go_on(self, _future: object = None) -> None:
        """Run what is being sent up to where it waits for C-core, as a task would."""
        assert self._sending is not None
        try:
            future = self._sending.send(None)
        except StopIteration:
            pass
        except grpc.aio.InternalError:
            # grpc.aio tells of it by a cancellation too, but only a moment later.
            self.is_gone = True
        except BaseException as error:  # noqa: BLE001 (who waits for it is told)
            self._error = error
        else:
            future._asyncio_future_blocking = False  # noqa: SLF001 (how a task takes what it is to wait for)
            future.add_done_callback(self._go_on)
            return
        self._sending = None
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    async def _quiet(self) -> None:
        """Wait until nothing is being sent any more."""
        if self._turn is not None:
            async with self._turn:
                await self._taken_all()

    @override
    async def answer(self, status: grpc.Status) -> None:
        await self._quiet()
        try:
            await self.context.abort_with_status(status)
        except grpc.aio.InternalError:
            self._aborted = asyncio.CancelledError()  # the caller is gone
        except grpc.aio.BaseError as error:
            self._aborted = error

    @override
    def interrupt(self) -> None:
        if self.task is not None:
            self.task.cancel()

    @override
    def when_left(self, callback: Callable[[], None]) -> None:
        self._left.append(callback)

    def left(self) -> None:
        """Tell that the status has left, or that the task is over, which holds this object."""
        self.task = None
        left, self._left = self._left, []
        for callback in left:
            callback()

    async def end(self) -> None:
        """Wait for what is being sent, and raise what grpc.aio wants to see if the call was answered."""
        await self._quiet()
        if self._aborted is not None:
            error, self._aborted = self._aborted, None
            raise error


class AioEngine(grpc.aio.ServerInterceptor):
    """Lets a `Lifecycle` live the calls of a grpc.aio server."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._handlers: dict[str, Handler] = {}

    def _handler(self, path: str, method: _MethodHandler) -> Handler:
        handler = self._handlers.get(path)
        if handler is None:
            handler = self._handlers[path] = self._lifecycle.adopt(path, method)
        return handler

    async def drive(
        self, call: Any, path: str, method: _MethodHandler, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Live a call as it comes from C-core, and end it as grpc.aio would."""
        context = cygrpc._ServicerContext(call, None, None, loop)  # noqa: SLF001 (what servicers get)
        rpc = AioRpc(context)
        try:
            message = await self._lifecycle.live(self._handler(path, method), rpc)
            await rpc.end()
            if message is None:
                await cygrpc._finish_handler_with_stream_responses(call, _given, None, context, loop)  # noqa: SLF001
            else:
                await cygrpc._finish_handler_with_unary_response(call, _given, message, context, None, loop)  # noqa: SLF001
        finally:
            rpc.left()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MethodHandler:
        """Return the method that a call asks for, as grpc.aio is to call it."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None:
            try:
                found = await continuation(handler_call_details)
            except Exception as error:  # noqa: BLE001 (gRPC would tell the caller its text)
                return self._form(self._lifecycle.refuse(path, error))
            if found is None:
                return self._form(self._lifecycle.refuse(path))
            handler = self._handler(path, found)
        return self._form(handler)

    def _form(self, handler: Handler) -> _MethodHandler:
        async def respond(_requests: Any, context: _Context) -> None:
            rpc = AioRpc(context)
            assert rpc.task is not None
            rpc.task.add_done_callback(lambda _task: rpc.left())
            message = await self._lifecycle.live(handler, rpc)
            await rpc.end()
            if message is not None:
                await context.write(message)

        return grpc.stream_stream_rpc_method_handler(respond)


async def _given(message: bytes | None, _context: _Context) -> bytes | None:
    """Stand for a servicer, which has returned before."""
    return message
