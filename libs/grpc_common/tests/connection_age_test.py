import asyncio
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress

import grpc
import pytest

from grpc_common import Server
from grpc_common.testing import configure

CONNECTIONS = 40

MESSAGES = [bytes([number]) * 2000 for number in range(30)]
"""Few enough for the server to write them all before the client has them: the window of HTTP/2 is 64 KiB."""

AGE = 0.5
LONGER = 1.3 * AGE
"""Seconds; gRPC varies the age by 10 %."""


async def pages(_request, _context):
    """Stream a page to a connection that has become too old meanwhile."""
    await asyncio.sleep(LONGER)
    for message in MESSAGES:
        yield message


async def written(_request, context):
    """Do so without a generator."""
    await asyncio.sleep(LONGER)
    for message in MESSAGES:
        await context.write(message)


async def chat(requests, context):
    """Do so when the client has said all."""
    async for _ in requests:
        pass
    await written(None, context)


def add(_servicer, server) -> None:
    """Register test.Pages."""
    handlers = {
        "List": grpc.unary_stream_rpc_method_handler(pages),
        "Write": grpc.unary_stream_rpc_method_handler(written),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Pages", handlers)])


@asynccontextmanager
async def serving(pause: float, **environ: str):
    """Serve test.Pages; yield the port of a network to it, which passes on 8 KiB a `pause`."""
    ours = {"KEEPALIVE_MAX_CONNECTION_AGE": f"{AGE:g}s", "DRAIN_GRACE": "40s"}
    server = Server(configure(**ours | environ))
    server.add(None, add)
    async with server.serving() as port, asyncio.TaskGroup() as tasks:

        async def connected(*client) -> None:
            tasks.create_task(relay(port, pause, *client))

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as network:
            yield network.sockets[0].getsockname()[1]


async def relay(port: int, pause: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on at once what a client says, and slowly what it gets."""
    with socket.socket() as server, suppress(ConnectionError):
        server.settimeout(0)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(server, ("127.0.0.1", port))
        passing = asyncio.create_task(pass_on(reader, server))
        while data := await loop.sock_recv(server, 8192):
            writer.write(data)
            await asyncio.sleep(pause)
        passing.cancel()
    writer.close()


async def pass_on(reader: asyncio.StreamReader, server: socket.socket) -> None:
    """Send the server what the client says, until one of them is gone."""
    with suppress(OSError):
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await asyncio.get_running_loop().sock_sendall(server, data)
        server.shutdown(socket.SHUT_WR)


def dial(port: int) -> grpc.aio.Channel:
    """Return a channel with a connection of its own, which repeats nothing by itself."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)


async def read(port: int, method: str) -> str:
    """Return "whole" if all messages of a stream came, or how it ended instead."""
    received = []
    try:
        async with asyncio.timeout(20), dial(port) as channel:
            call = channel.stream_stream(f"/test.Pages/{method}")
            async for message in call(iter([b""])):
                received.append(message)  # noqa: PERF401 (what came before an error counts)
    except grpc.aio.AioRpcError as error:
        return f"{error.code()} after {len(received)} messages: {error.details()}"
    return "whole" if received == MESSAGES else f"only {len(received)} messages"


@pytest.mark.parametrize("method", ["List", "Write", "Chat"])
async def test_connection_that_is_too_old_ends_after_the_client_has_all(method):
    """No client misses the end of its stream, though its connection reached max_connection_age meanwhile."""
    async with serving(pause=0.01) as port:
        outcomes = await asyncio.gather(*(read(port, method) for _ in range(CONNECTIONS)))
    # Without the wait 1 to 5 are. What has left the server's kernel is still lost if the client says anything
    # before it has read that, for which the machine must stand still: seen once in some 1500 streams.
    assert outcomes.count("whole") >= CONNECTIONS - 2, Counter(outcomes)


async def test_time_of_the_network_is_not_the_servicers():
    """A stream that was written in time ends well, though its client gets it after the deadline."""
    start, deadline = time.monotonic(), LONGER + 2
    # Nothing else is to end it: neither its connection's age, nor a ping that is as slow as the stream.
    patience = {"KEEPALIVE_MAX_CONNECTION_AGE": "60s", "KEEPALIVE_TIMEOUT": "60s"}
    async with serving(pause=0.4, DEFAULT_STREAM_DEADLINE=f"{deadline:g}s", **patience) as port:
        assert await read(port, "List") == "whole"
    assert time.monotonic() > start + deadline
