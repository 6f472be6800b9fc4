"""A server on C-core's completion queue."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
from grpc._cython import cygrpc  # type: ignore[import-not-found, attr-defined, unused-ignore]  # compiled

from grpc_common.core.errors import StatusError
from grpc_common.server.handler import Handler
from grpc_common.server.lifecycle import MANY_HEADERS, Lifecycle
from grpc_common.server.queue.loop import QueueLoop
from grpc_common.server.queue.rpc import QueueRpc

_AHEAD = 32
"""Calls that C-core may hand over before Python asks for more: the metadata of one can be megabytes."""

_LATE = 0.05
"""Seconds that a call's life waits for its first message, which mostly comes with the headers."""


class _CallDetails(grpc.HandlerCallDetails):
    """What a generic handler is asked with."""

    def __init__(self, method: str, invocation_metadata: Any) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


class QueueServer:
    """The part of grpc.aio.Server that `Server` needs, for a running QueueLoop.

    Args:
        options: for C-core.
        lifecycle: lives the calls.
        loop: runs.

    """

    def __init__(self, options: Sequence[tuple[str, Any]], lifecycle: Lifecycle, loop: QueueLoop) -> None:
        self._lifecycle = lifecycle
        self._loop = loop
        self._server = cygrpc.Server(tuple(options), False)  # noqa: FBT003 (grpcio's)
        self._server.register_completion_queue(loop.queue)
        self._generic: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[bytes, Handler] = {}
        self._awaiting: list[QueueRpc] = []
        self._stopped: asyncio.Future[None] = loop.create_future()
        self._is_started = False
        self._is_stopping = False

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Serve what `generic_rpc_handlers` have."""
        self._generic += generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Do nothing, as grpc.aio does: generated code registers the same as generic handlers."""

    def add_insecure_port(self, address: str) -> int:
        """Listen in plaintext, and return the port."""
        return self._bound(address, self._server.add_http2_port(address.encode()))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen with TLS, and return the port."""
        credentials = server_credentials._credentials  # type: ignore[attr-defined]  # noqa: SLF001 (as grpc.aio)
        return self._bound(address, self._server.add_http2_port(address.encode(), credentials))

    def _bound(self, address: str, port: int) -> int:
        if not port:
            raise RuntimeError(f"Failed to bind to address {address}")
        return port

    async def start(self) -> None:
        """Take calls."""
        self._is_started = True
        self._server.start()
        for _ in range(_AHEAD):
            self._request_call()

    def _request_call(self) -> None:
        self._server.request_call(self._loop.queue, self._loop.queue, self._called)

    def _called(self, request: Any) -> None:
        if not request.success:  # the server stops
            return
        if not self._is_stopping:
            self._request_call()
        handler = self._handlers.get(request.call_details.method) or self._find(request)
        rpc = QueueRpc(self._loop, request, handler, self._lifecycle)
        if handler.streams_requests or len(request.invocation_metadata) > MANY_HEADERS:
            rpc.start()
        else:
            rpc.begin()
            self._await(rpc)

    def _await(self, rpc: QueueRpc) -> None:
        self._awaiting.append(rpc)
        if len(self._awaiting) == 1:
            self._loop.call_later(_LATE, self._start_late)

    def _start_late(self) -> None:
        """Start calls whose message has not come, so that limits and deadlines hold for them too."""
        awaiting, self._awaiting = self._awaiting, []
        for rpc in awaiting:
            rpc.start()

    def _find(self, request: Any) -> Handler:
        try:
            path = request.call_details.method.decode()
        except UnicodeDecodeError:
            path = request.call_details.method.decode(errors="replace")
            error = StatusError(grpc.StatusCode.UNIMPLEMENTED, "the path is not UTF-8")
            return self._lifecycle.refuse(path, error)
        details = _CallDetails(path, request.invocation_metadata)
        try:
            found = next(filter(None, (handler.service(details) for handler in self._generic)), None)
        except Exception as error:  # noqa: BLE001 (gRPC would tell the caller its text)
            return self._lifecycle.refuse(path, error)
        if found is None:
            return self._lifecycle.refuse(path)
        handler = self._handlers[request.call_details.method] = self._lifecycle.adopt(path, found)
        return handler

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, and cancel those that last longer than `grace` seconds."""
        if not self._is_started:
            self._server.destroy()
            return
        if not self._is_stopping:
            self._is_stopping = True
            self._server.shutdown(self._loop.queue, self._shut_down)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace or 0):
                await asyncio.shield(self._stopped)
        if not self._stopped.done():
            self._server.cancel_all_calls()
            await asyncio.shield(self._stopped)
        self._server.destroy()

    def _shut_down(self, _event: Any) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)
