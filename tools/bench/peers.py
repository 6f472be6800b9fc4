"""The servers that are compared: each serves bench.Echo, and yields its port."""

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

import grpc_common
from tools.bench import other_peers
from tools.bench.ways import SERVICE, STREAM_MESSAGES, WAYS, Way

type Address = tuple[int, int]
"""The port, and the id of the process that serves there."""

_RELAY_TIMEOUT = 30
"""Seconds; every call has a deadline, as it has with grpc_common."""

_MAX_CONNECTIONS = 20_000
"""Of grpc_common, whose own limit is below the idle connections of one load; other servers have none."""

THREADS = 16
"""Of grpc.server; more don't serve more, as one at a time runs Python."""


type Handlers = dict[str, grpc.RpcMethodHandler[Any, Any]]


def _generic(
    way: Way, echo: Callable[..., Any], stream: Callable[..., Any], count: Callable[..., Any]
) -> Handlers:
    unused = {f"Unused{number}": grpc.unary_unary_rpc_method_handler(echo) for number in range(way.methods)}
    return unused | {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Handled": grpc.unary_unary_rpc_method_handler(count),
    }


def _service(handlers: Handlers) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _asynchronous(way: Way, channel: grpc.aio.Channel | None) -> Handlers:
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

    handlers = _generic(way, echo, stream, count)
    if channel is not None:
        there: Callable[..., Awaitable[bytes]] = channel.unary_unary(f"/{SERVICE}/Echo")

        async def relay(request: bytes, _context: object) -> bytes:
            answer = await there(request, timeout=_RELAY_TIMEOUT)
            next(handled)
            return answer

        handlers["Relay"] = grpc.unary_unary_rpc_method_handler(relay)
    return handlers


def _synchronous(way: Way) -> Handlers:
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

    return _generic(way, echo, stream, count)


@asynccontextmanager
async def _bare(way: Way, upstream: int) -> AsyncIterator[Address]:
    async with AsyncExitStack() as stack:
        channel = grpc.aio.insecure_channel(_target(upstream)) if way.relays else None
        if channel is not None:
            await stack.enter_async_context(channel)
        handlers = _asynchronous(way, channel)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([_service(handlers)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        yield port, os.getpid()
        await server.stop(None)


@asynccontextmanager
async def _threaded(way: Way) -> AsyncIterator[Address]:
    server = grpc.server(ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers([_service(_synchronous(way))])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, os.getpid()
    server.stop(None).wait()


@asynccontextmanager
async def _grpc_common(way: Way, certificates: str, upstream: int) -> AsyncIterator[Address]:
    section: dict[str, Any] = {
        "port": 0,
        "host": "127.0.0.1",
        "engine": way.engine,
        "max_connections": _MAX_CONNECTIONS,
        "drain": {"delay": 0, "grace": 1},
    }
    if way.mutual_tls:
        section["tls"] = {"directory": certificates, "require_client_certificate": True}
    config = grpc_common.ServerConfig.model_validate((way.settings or {}) | {"server": section})
    grpc_common.configure_logging(config.logging.level, "json")
    async with AsyncExitStack() as stack:
        channel = None
        if way.relays:
            channel = await stack.enter_async_context(grpc_common.channel(_target(upstream)))
        handlers = _asynchronous(way, channel)
        server = grpc_common.Server(config)
        server.add(None, lambda _servicer, server: server.add_generic_rpc_handlers([_service(handlers)]))
        yield await stack.enter_async_context(server.serving()), os.getpid()


def _target(port: int) -> str:
    return f"127.0.0.1:{port}"


_OTHERS: dict[str, Callable[[Way], AbstractAsyncContextManager[Address]]] = {
    "grpc.server, threaded": _threaded,
    "grpclib": other_peers.grpclib,
    "connect-python on hypercorn": other_peers.hypercorn,
    "connect-python on pyvoy": other_peers.pyvoy,
    "grpc-go": other_peers.go,
}


def _opened(way: Way, certificates: str, upstream: int) -> AbstractAsyncContextManager[Address]:
    if way.settings is not None:
        return _grpc_common(way, certificates, upstream)
    if way.name in _OTHERS:
        return _OTHERS[way.name](way)
    return _bare(way, upstream)


def serve(
    way: Way,
    certificates: str,
    upstream: int,
    started: Callable[[int, int], None],
    wait: Callable[[], object],
) -> None:
    """Serve `way`, tell `started` the port and the process, and end when `wait` returns.

    `certificates` is a folder with tls.crt, tls.key and ca.crt, for mutual TLS; `upstream` is the port that
    the method Relay calls.

    Raises:
        StartError: this grpcio can't have the engine.
        ImportError: the peer's package is not installed.
        RuntimeError: the peer can't be had here.

    """

    async def run() -> None:
        async with _opened(way, certificates, upstream) as address:
            started(*address)
            await asyncio.to_thread(wait)

    asyncio.run(run(), loop_factory=_new_loop(way))


def _new_loop(way: Way) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if way.name == "grpc.aio on uvloop":
        import uvloop  # noqa: PLC0415 (only here, as others don't pay for it)

        return uvloop.new_event_loop
    return None if way.settings is None else grpc_common.loop_factory(way.engine)


def main() -> None:
    """Serve the way of the command line: tell the port and the process on stdout, end with stdin."""
    name, certificates = sys.argv[1:]
    (way,) = (way for way in WAYS if way.name == name)
    out = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())

    def started(port: int, pid: int) -> None:
        os.write(out, b"%d %d\n" % (port, pid))

    serve(way, certificates, 0, started, sys.stdin.read)


if __name__ == "__main__":
    main()
