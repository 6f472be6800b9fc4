"""A grpc.aio server that survives a request whose path is not UTF-8.

grpc.aio (seen in 1.85.3) decodes paths in the loop that takes on all calls: one request with a byte above
0x7F in its path, from anybody who can connect, ends that loop and cancels every call. Here the loop that
decodes belongs to a dispatcher, a second AioServer without a port, and only the dispatcher ends.
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

log = structlog.get_logger()

_NEEDED = ("_make_request_call_future", "_request_call", "_serving_task_crash_handler")
"""Private methods of grpc.aio's server in 1.85, which a later version may not have."""


def accepting_server(
    options: Sequence[tuple[str, Any]], interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> grpc.aio.Server:
    """Return what `grpc.aio.server` does for the same arguments, but no path can end it.

    Where grpcio has not what that needs, the server is grpc.aio's own, and the log says so.
    """
    if all(hasattr(cygrpc.AioServer, name) for name in _NEEDED):
        return _AcceptingServer(options, interceptors)
    log.warning("a path that is not UTF-8 can end this server", grpcio=grpc.__version__)
    return grpc.aio.server(interceptors=interceptors, options=options)


class _AcceptingServer(_server.Server):  # type: ignore[misc]  # without types
    def __init__(
        self, options: Sequence[tuple[str, Any]], interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _Listener(self._loop, interceptors, options)


class _Listener(cygrpc.AioServer):  # type: ignore[misc]  # compiled, without types
    """Has the ports, and hands its calls to a dispatcher."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        options: Sequence[tuple[str, Any]],
    ) -> None:
        self._event_loop = loop
        self._all_interceptors = interceptors
        self._handlers: list[grpc.GenericRpcHandler] = []
        super().__init__(loop, None, (), interceptors, tuple(options), None)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._handlers.extend(handlers)

    async def start(self) -> None:
        self._dispatcher = await self._new_dispatcher()
        await super().start()

    async def shutdown(self, grace: float | None) -> None:
        await super().shutdown(grace)
        await self._dispatcher.end()

    async def _new_dispatcher(self) -> _Dispatcher:
        dispatcher = _Dispatcher(self._event_loop, self._handlers, self._all_interceptors)
        await dispatcher.start()
        return dispatcher

    def _make_request_call_future(self, registered: bytes | None) -> asyncio.Future[Any]:
        if registered is None:
            return self._event_loop.create_task(self._relay())
        future: asyncio.Future[Any] = super()._make_request_call_future(registered)
        return future

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
        interceptors: Sequence[grpc.aio.ServerInterceptor],
    ) -> None:
        self._event_loop = loop
        self._dispatched: asyncio.Future[bool] = loop.create_future()
        super().__init__(loop, None, handlers, interceptors, (), None)

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
