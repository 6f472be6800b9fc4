"""A grpc.aio server that takes calls on faster than grpc.aio's own, and survives a path that is not UTF-8.

The methods that are known are registered with C-core, which then says which one a call is for: neither a look
at its path nor an interceptor comes between, nor the tasks that grpc.aio has for these.

Calls of unknown methods are grpc.aio's. It (seen in 1.85.3) decodes paths in the loop that takes on
all calls: one request with a byte above 0x7F in its path, from anybody who can connect, ends that loop and
cancels every call. Here the loop that decodes belongs to a dispatcher, a second AioServer without a port, and
only the dispatcher ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Never

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[import-not-found, attr-defined, unused-ignore]  # compiled
from grpc.aio import _server  # type: ignore[attr-defined, unused-ignore]  # without types

from grpc_common.server.aio import AioEngine

log = structlog.get_logger()

_METHODS = (
    "_make_request_call_future",
    "_request_call",
    "_request_registered_call",
    "_serving_task_crash_handler",
    "add_registered_method_handlers",
)
_FUNCTIONS = (
    "_RequestCallError",
    "_ServicerContext",
    "_finish_handler_with_stream_responses",
    "_finish_handler_with_unary_response",
    "_schedule_rpc_coro",
)
"""What is private in grpc.aio's server of 1.85, and what a later version may not have."""

_AHEAD = 8
"""Calls of a method that C-core may hand over before Python asks for more. grpc.aio has 1, and so a change of
threads and a turn of the loop for each call; with 8 a call costs a quarter less at 64 in flight."""

_PLAIN = type(grpc.method_handlers_generic_handler("", {}))
"""The generic handlers that are no more than a dictionary."""


def accepting_server(options: Sequence[tuple[str, Any]], engine: AioEngine) -> grpc.aio.Server:
    """Return what `grpc.aio.server` does with `engine` as its interceptor, but no path can end it.

    Where grpcio has not what that needs, the server is grpc.aio's own, and the log says so.
    """
    if all(hasattr(cygrpc.AioServer, name) for name in _METHODS) and all(
        hasattr(cygrpc, name) for name in _FUNCTIONS
    ):
        return _AcceptingServer(options, engine)
    log.warning(
        "a path that is not UTF-8 can end this server, which is slower than it could be",
        grpcio=grpc.__version__,
    )
    return grpc.aio.server(interceptors=[engine], options=options)


class _AcceptingServer(_server.Server):  # type: ignore[misc]  # without types
    def __init__(self, options: Sequence[tuple[str, Any]], engine: AioEngine) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _Listener(self._loop, engine, options)


class _Listener(cygrpc.AioServer):  # type: ignore[misc]  # compiled, without types
    """Has the ports, and hands calls of methods that it does not know to a dispatcher."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: AioEngine,
        options: Sequence[tuple[str, Any]],
    ) -> None:
        self._event_loop = loop
        self._engine = engine
        self._generic: list[grpc.GenericRpcHandler] = []
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        super().__init__(loop, None, (), (), tuple(options), None)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._generic.extend(handlers)
        for handler in handlers:
            if type(handler) is _PLAIN:
                # gRPC has no public way to list them, and registers no others than those in ASCII.
                methods = getattr(handler, "_method_handlers", {})
                self._methods |= {path: method for path, method in methods.items() if path.isascii()}

    async def start(self) -> None:
        self._dispatcher = await self._new_dispatcher()
        self.add_registered_method_handlers(self._methods)
        await super().start()

    async def shutdown(self, grace: float | None) -> None:
        await super().shutdown(grace)
        await self._dispatcher.end()

    async def _new_dispatcher(self) -> _Dispatcher:
        dispatcher = _Dispatcher(self._event_loop, self._generic, self._engine)
        await dispatcher.start()
        return dispatcher

    def _make_request_call_future(self, registered: bytes | None) -> asyncio.Future[Any]:
        return self._event_loop.create_task(
            self._relay() if registered is None else self._accept_ahead(registered)
        )

    async def _accept_ahead(self, method: bytes) -> None:
        await self._accept(method)  # one task is enough for a method that nobody calls
        await asyncio.gather(*(self._accept_all(method) for _ in range(_AHEAD)))

    async def _accept_all(self, method: bytes) -> Never:
        while True:
            await self._accept(method)

    async def _accept(self, method: bytes) -> None:
        path, loop = method.decode(), self._event_loop
        call = await self._request_registered_call(method)  # raises when the server stops
        life = self._engine.drive(call, path, self._methods[path], loop)
        work = cygrpc._schedule_rpc_coro(life, call, loop, path)  # noqa: SLF001 (as for any call of grpc.aio)
        asyncio.Task(work, loop=loop, eager_start=True)

    async def _relay(self) -> Never:
        while True:
            call = await self._request_call()  # raises when the server stops
            if not await self._dispatcher.dispatch(call):
                await _refuse(call, self._event_loop)
                await self._dispatcher.end()
                self._dispatcher = await self._new_dispatcher()


class _Dispatcher(cygrpc.AioServer):  # type: ignore[misc]  # compiled, without types
    """Runs the calls that it is given, until it can't decode the path of one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handlers: Sequence[grpc.GenericRpcHandler],
        engine: AioEngine,
    ) -> None:
        self._event_loop = loop
        self._dispatched: asyncio.Future[bool] = loop.create_future()
        super().__init__(loop, None, handlers, (engine,), (), None)

    async def dispatch(self, call: Any) -> bool:
        """Run a call, and return True; False if its path can't be decoded."""
        self._dispatched = self._event_loop.create_future()
        self._next_call.set_result(call)
        return await self._dispatched

    async def end(self) -> None:
        """End as every AioServer must; its calls have ended or go on without it."""
        if not self._next_call.done():
            self._next_call.set_exception(cygrpc._RequestCallError())  # noqa: SLF001 (as at the end of a server)
        with suppress(UnicodeDecodeError):
            await self.shutdown(None)  # raises what has ended the loop, before it is done
        await self.shutdown(None)

    def _make_request_call_future(self, _registered: bytes | None) -> asyncio.Future[Any]:
        self._next_call: asyncio.Future[Any] = self._event_loop.create_future()
        if not self._dispatched.done():
            self._dispatched.set_result(True)
        return self._next_call

    def _serving_task_crash_handler(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(task.exception(), UnicodeDecodeError):
            self._dispatched.set_result(False)


async def _refuse(call: Any, loop: asyncio.AbstractEventLoop) -> None:
    context = cygrpc._ServicerContext(call, None, None, loop)  # noqa: SLF001 (what servicers get)
    with suppress(Exception):  # the client may be gone
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "the path is not UTF-8")
