"""For tests of the server as clients and hostile peers see it: the real one, with a few methods of bytes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from grpc_common.config.sections import ServerConfig
from grpc_common.core.error_map import Errors
from grpc_common.observe.logs import set_level
from grpc_common.server.engine import loop_factory
from grpc_common.server.server import Server
from grpc_common.testing.loopback import configure


class Methods:
    """The service `test.Methods`.

    Echo, Join, Repeat and Chat are one of each type and answer with what they get; Hold does so once
    `opened` is set; Peer answers with the client's address.
    """

    def __init__(self, more: Mapping[str, grpc.RpcMethodHandler[Any, Any]] | None = None) -> None:
        self.more = more or {}
        """Methods of a test's own."""
        self.entered: asyncio.Queue[bytes] = asyncio.Queue()
        """The requests that Hold has got."""
        self.opened = asyncio.Event()

    async def echo(self, request: bytes, _context: Any) -> bytes:
        """Answer with the request."""
        return request

    async def join(self, requests: AsyncIterator[bytes], _context: Any) -> bytes:
        """Answer with all requests."""
        return b"".join([request async for request in requests])

    async def repeat(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        """Answer twice."""
        yield request
        yield request

    async def chat(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        """Answer each request."""
        async for request in requests:
            yield request

    async def hold(self, request: bytes, _context: Any) -> bytes:
        """Answer once the test says so."""
        self.entered.put_nowait(request)
        await self.opened.wait()
        return request

    async def peer(self, _request: bytes, context: Any) -> bytes:
        """Answer with the other end of the connection."""
        return str(context.peer()).encode()


def _add(methods: Methods, server: grpc.aio.Server) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(methods.echo),
        "Join": grpc.stream_unary_rpc_method_handler(methods.join),
        "Repeat": grpc.unary_stream_rpc_method_handler(methods.repeat),
        "Chat": grpc.stream_stream_rpc_method_handler(methods.chat),
        "Hold": grpc.unary_unary_rpc_method_handler(methods.hold),
        "Peer": grpc.unary_unary_rpc_method_handler(methods.peer),
        **methods.more,
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Methods", handlers)])


@asynccontextmanager
async def serving(
    methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]] | None = None,
    errors: Errors | None = None,
    /,
    **environ: str,
) -> AsyncIterator[tuple[int, Methods]]:
    """Serve `test.Methods`, with more `methods`, as the variables say; yield the port and the service."""
    server = Server(configure(ServerConfig, **environ), errors=errors)
    service = Methods(methods)
    server.add(service, _add)
    async with server.serving() as port:
        yield port, service
        service.opened.set()


@asynccontextmanager
async def serving_handlers(
    handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]], errors: Errors | None = None, /, **environ: str
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve methods that the test brings, {name: handler}, in `test.Methods`; yield a channel to them."""
    async with (
        serving(handlers, errors, **environ) as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


def engine_of_tests() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop of a process that a test starts, for the engine that the test runs on."""
    return loop_factory("completion-queue" if os.environ.get("PYTEST_EVENT_LOOP") else "grpc-aio")


@contextmanager
def serving_process(**environ: str) -> Iterator[tuple[int, int]]:
    """Do so in a process of its own, which may be stopped; yield the port and the process id."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve_and_report, args=(sender, environ), daemon=True)
    process.start()
    sender.close()  # or a process that fails at start would be waited for
    try:
        port = receiver.recv()
        assert process.pid is not None
        yield port, process.pid
    finally:
        process.kill()
        process.join()


def memory(pid: int, name: str) -> int:
    """Return a number of bytes of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _serve_and_report(sender: Connection, environ: dict[str, str]) -> None:
    async def serve() -> None:
        set_level("error")
        async with serving(**environ) as (port, _):
            sender.send(port)
            await asyncio.Event().wait()

    asyncio.run(serve(), loop_factory=engine_of_tests())
