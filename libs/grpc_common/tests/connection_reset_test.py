"""What becomes of calls that the client sends while the server closes a connection that is too old.

The client acknowledges the PING behind the server's first GOAWAY in a write of its own, ahead of calls that
have stream numbers already (WriteContext::FlushPingAcks in writing.cc of C-core's chttp2). The server takes
the acknowledgement for the end of what it has to expect: if it has no call left, it closes the socket right
behind its last GOAWAY (write_action_end_locked of chttp2_transport.cc). So these calls come too late. The
GOAWAY says so, and the client sends them again on another connection, once. It loses them if

- they are larger than grpc.per_rpc_retry_buffer_size;
- they come too late on that connection, too, whose age then is less than the calls take;
- it writes twice before it has read the GOAWAY: the kernel answers the first write with a reset, the second
  one fails, and close_transport_locked fails all calls, as those of a server that was lost.

The last can be seen under `strace -f -e inject=recvmsg:delay_enter=3000` of a client with 24 callers and a
server with an age of 200 ms: 12 of 9169 calls, all of them unseen by the server; none of 50 000 without it.
All of it is so in 1.85.3.
"""

import asyncio
from contextlib import suppress

import grpc
import pytest

from grpc_common import ChannelConfig
from grpc_common.testing.http2 import (
    ACK,
    CALL,
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HELLO,
    PING,
    SETTINGS,
    WINDOW_UPDATE,
    fields,
    frame,
)
from grpc_common.testing.server import serving

PATIENCE = 20
LARGE = 10**6
CALLS = 10

ENOUGH = 2**30
"""Bytes that the client may send before it hears more."""

OPTIONS = [option for option in ChannelConfig().options() if option[0] != "grpc.service_config"]
"""Those of our channels, without a retry policy and without health, which a server by hand does not have."""

HIGHEST = 2**31 - 1
"""The stream in a first GOAWAY, which refuses none yet."""


def greeting(streams: int) -> bytes:
    """Return the settings of a server that takes so many calls at a time."""
    settings = b"\0\3" + streams.to_bytes(4) + b"\0\4" + ENOUGH.to_bytes(4)
    return frame(SETTINGS, payload=settings) + frame(WINDOW_UPDATE, payload=ENOUGH.to_bytes(4))


def answer(stream: int) -> bytes:
    """Return all of a call's answer."""
    return (
        frame(HEADERS, stream, b"\x88" + fields(content_type="application/grpc"), flags=END_HEADERS)
        + frame(DATA, stream, b"\0\0\0\0\1x")
        + frame(HEADERS, stream, fields(grpc_status="0"), flags=END_HEADERS | END_STREAM)
    )


def goaway(last: int) -> bytes:
    """Return a GOAWAY without an error, which says that streams above `last` were not seen."""
    return frame(GOAWAY, payload=last.to_bytes(4) + bytes(4))


async def frames(reader: asyncio.StreamReader):
    """Yield kind, flags, stream and payload of each frame, until the connection ends."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            yield head[3], head[4], int.from_bytes(head[5:]), payload


async def told_to_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[tuple]:
    """Acknowledge the PING of a server that sends its client away; return the GOAWAYs up to the end."""
    goaways = []
    async for kind, flags, _, payload in frames(reader):
        if kind == GOAWAY:
            goaways.append((int.from_bytes(payload[:4]), payload[8:]))
        if kind == PING and not flags & ACK:
            writer.write(frame(PING, payload=payload, flags=ACK))
    return goaways


async def test_server_closes_behind_its_goaway():
    """A call right behind the acknowledgement meets a closed socket, if no call is in flight."""
    async with serving(KEEPALIVE_MAX_CONNECTION_AGE="200ms") as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CALL + frame(DATA, 1, b"\0\0\0\0\1x", flags=END_STREAM))
        async with asyncio.timeout(PATIENCE):
            assert await told_to_leave(reader, writer) == [(HIGHEST, b"max_age"), (1, b"max_age")]
            with pytest.raises(ConnectionError):
                while True:  # the first write brings the reset
                    writer.write(frame(HEADERS, 3, ECHO, flags=END_HEADERS))
                    await writer.drain()
                    await asyncio.sleep(0.01)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class Old:
    """A server whose first connection is too old once half the calls are there, as C-core ends it."""

    def __init__(self) -> None:
        self.connections = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        is_old = self.connections == 1
        writer.write(greeting(CALLS // 2 if is_old else CALLS) + frame(SETTINGS, flags=ACK))
        await reader.readexactly(len(HELLO) - len(frame(SETTINGS)))
        await (self._send_away if is_old else self._answer)(reader, writer)
        writer.close()

    async def _send_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole: list[int] = []
        async for kind, flags, stream, _ in frames(reader):
            if kind == DATA and flags & END_STREAM:
                whole.append(stream)
                if len(whole) == CALLS // 2:
                    # The others start now, and the acknowledgement comes before them.
                    writer.write(b"".join(map(answer, whole)) + goaway(HIGHEST))
                    writer.write(frame(PING, payload=bytes(8)))
            if kind == PING and flags & ACK:
                writer.write(goaway(max(whole)))
                return

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for kind, flags, stream, _ in frames(reader):
            if kind == DATA and flags & END_STREAM:
                writer.write(answer(stream))


@pytest.mark.parametrize("size", [1, LARGE])
async def test_call_that_came_too_late_is_sent_again(size):
    """No call is lost with an old connection, be it small or large: its server has not seen it."""
    old = Old()
    async with await asyncio.start_server(old.connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as client:
            echo = client.unary_unary("/test.Methods/Echo")
            calls = [echo(bytes(size), timeout=PATIENCE) for _ in range(CALLS)]
            assert {await call.code() for call in calls} == {grpc.StatusCode.OK}
    assert old.connections == 2
