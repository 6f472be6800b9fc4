"""Servers of other libraries than grpcio: grpclib, connect-python and grpc-go."""

import asyncio
import itertools
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tools.bench.ways import SERVICE, STREAM_MESSAGES, Way
from tools.golang import built

_GO = Path(__file__).resolve().parent / "go"


@asynccontextmanager
async def grpclib(_way: Way) -> AsyncIterator[tuple[int, int]]:
    """Serve with grpclib, which is Python all the way down."""
    from grpclib.server import Server  # noqa: PLC0415 (only here, as others don't pay for it)

    server = Server([_Grpclib()], codec=_grpclib_codec())
    await server.start("127.0.0.1", 0)
    yield server._server.sockets[0].getsockname()[1], os.getpid()  # noqa: SLF001 (it tells no port)
    server.close()
    await server.wait_closed()


def _grpclib_codec() -> Any:
    from grpclib.encoding.base import CodecBase  # noqa: PLC0415

    class Raw(CodecBase):
        __content_subtype__ = "proto"

        def encode(self, message: bytes, message_type: object) -> bytes:  # noqa: ARG002
            return message

        def decode(self, data: bytes, message_type: object) -> bytes:  # noqa: ARG002
            return bytes(data)

    return Raw()


class _Grpclib:
    def __init__(self) -> None:
        self._handled = itertools.count()

    def __mapping__(self) -> dict[str, Any]:
        from grpclib.const import Cardinality, Handler  # noqa: PLC0415

        unary, stream = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        return {
            f"/{SERVICE}/Echo": Handler(self._echo, unary, bytes, bytes),
            f"/{SERVICE}/Stream": Handler(self._stream, stream, bytes, bytes),
            f"/{SERVICE}/Handled": Handler(self._count, unary, bytes, bytes),
        }

    async def _echo(self, stream: Any) -> None:
        request = await stream.recv_message()
        next(self._handled)
        await stream.send_message(request)

    async def _stream(self, stream: Any) -> None:
        request = await stream.recv_message()
        for _ in range(STREAM_MESSAGES):
            next(self._handled)
            await stream.send_message(request)

    async def _count(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(b"%d" % next(self._handled))


@asynccontextmanager
async def hypercorn(_way: Way) -> AsyncIterator[tuple[int, int]]:
    """Serve with connect-python on hypercorn, which is Python and has HTTP/2 trailers, as gRPC needs them."""
    from hypercorn.asyncio import serve  # noqa: PLC0415
    from hypercorn.config import Config  # noqa: PLC0415

    from tools.bench.connect_app import app  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config, stop = Config(), asyncio.Event()
        config.bind = [f"fd://{listener.fileno()}"]
        config.backlog = 1024
        serving = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
        yield listener.getsockname()[1], os.getpid()
        stop.set()
        await serving


@asynccontextmanager
async def pyvoy(_way: Way) -> AsyncIterator[tuple[int, int]]:
    """Serve with connect-python on pyvoy, the server that its documentation names for gRPC."""
    from pyvoy import PyvoyServer  # noqa: PLC0415

    async with PyvoyServer("tools.bench.connect_app:app") as server:
        process = server._process  # noqa: SLF001 (it tells no process)
        assert process
        yield server.listener_port, process.pid


@asynccontextmanager
async def go(_way: Way) -> AsyncIterator[tuple[int, int]]:
    """Serve with grpc-go.

    Raises:
        RuntimeError: it can't be built here.

    """
    process = await asyncio.create_subprocess_exec(
        await asyncio.to_thread(built, _GO, "bench-go"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdin
    yield int(await process.stdout.readline()), process.pid
    process.stdin.close()
    await process.wait()
