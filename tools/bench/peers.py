"""The servers that are compared: each serves bench.Echo, and yields its port."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc

import grpc_common
from tools.bench.ways import BASE, Way

SERVICE = "bench.Echo"
STREAM_MESSAGES = 1000
"""How many messages the method Stream answers with, each what the request was."""

# EchoLarge is Echo by another name: grpc_common treats a method that has ever sent a large response in
# another way from then on, so that one load would change what the next ones cost.

THREADS = 16
"""Of grpc.server; more don't serve more, as one at a time runs Python."""


def _generic(echo: Callable[..., Any], stream: Callable[..., Any], count: Callable[..., Any]) -> Any:
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "EchoLarge": grpc.unary_unary_rpc_method_handler(echo),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Handled": grpc.unary_unary_rpc_method_handler(count),
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _asynchronous() -> Any:
    # A message is counted where it is made: what was refused must not pass for a cheap call, and a
    # stream that h2load cuts off when its time is over must not pass for a whole one.
    handled = itertools.count()

    async def echo(request: bytes, _context: object) -> bytes:
        next(handled)
        return request

    async def stream(request: bytes, _context: object) -> AsyncIterator[bytes]:
        for _ in range(STREAM_MESSAGES):
            next(handled)
            yield request

    async def count(_request: bytes, _context: object) -> bytes:
        return b"%d" % next(handled)

    return _generic(echo, stream, count)


def _synchronous() -> Any:
    handled = itertools.count()

    def echo(request: bytes, _context: object) -> bytes:
        next(handled)
        return request

    def stream(request: bytes, _context: object) -> Iterator[bytes]:
        for _ in range(STREAM_MESSAGES):
            next(handled)
            yield request

    def count(_request: bytes, _context: object) -> bytes:
        return b"%d" % next(handled)

    return _generic(echo, stream, count)


@asynccontextmanager
async def _bare(_way: Way, _certificates: str) -> AsyncIterator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_asynchronous()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


@asynccontextmanager
async def _threaded(_way: Way, _certificates: str) -> AsyncIterator[int]:
    server = grpc.server(ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers([_synchronous()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@asynccontextmanager
async def _grpc_common(way: Way, certificates: str) -> AsyncIterator[int]:
    section: dict[str, Any] = {
        "port": 0,
        "host": "127.0.0.1",
        "engine": way.engine,
        "drain": {"delay": 0, "grace": 1},
    }
    if way.mutual_tls:
        section["tls"] = {"directory": certificates, "require_client_certificate": True}
    config = grpc_common.ServerConfig.model_validate((way.settings or {}) | {"server": section})
    grpc_common.configure_logging(config.logging.level, "json")
    server = grpc_common.Server(config)
    server.add(None, lambda _servicer, server: server.add_generic_rpc_handlers([_asynchronous()]))
    async with server.serving() as port:
        yield port


_PEERS: dict[str, Callable[[Way, str], AbstractAsyncContextManager[int]]] = {
    BASE: _bare,
    "grpc.server, threaded": _threaded,
}


def serve(way: Way, certificates: str, started: Callable[[int], None], wait: Callable[[], object]) -> None:
    """Serve `way`, tell `started` the port, and end when `wait` returns.

    `certificates` is a folder with tls.crt, tls.key and ca.crt, for mutual TLS.

    Raises:
        StartError: this grpcio can't have the engine.

    """

    async def run() -> None:
        opened = _PEERS[way.name] if way.settings is None else _grpc_common
        async with opened(way, certificates) as port:
            started(port)
            await asyncio.to_thread(wait)

    new_loop = None if way.settings is None else grpc_common.loop_factory(way.engine)
    asyncio.run(run(), loop_factory=new_loop)
