import asyncio
import socket
from contextlib import contextmanager

import pytest

from grpc_common.server.flush import Streams

PATIENCE = 10
"""Seconds: enough for a busy machine, and a third of what a client that reads nothing is waited for."""


@contextmanager
def unread(address: str):
    """Yield a peer, the bytes that it was sent and has not read, and its socket."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
        listener.accept()[0] as server,
    ):
        server.settimeout(0)
        written = 0
        with pytest.raises(BlockingIOError):
            while True:
                written += server.send(bytes(100_000))
        host = "ipv6:%5B::1%5D" if ":" in address else f"ipv4:{address}"
        yield f"{host}:{client.getsockname()[1]}", written, client


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_end_of_a_stream_waits_for_the_client(address):
    """It waits until the client has all, and no longer."""
    with unread(address) as (peer, written, client):
        waiting = asyncio.create_task(Streams().sent(peer))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        await asyncio.to_thread(client.recv, written, socket.MSG_WAITALL)
        await asyncio.wait_for(waiting, PATIENCE)


async def test_stream_that_is_not_the_last_does_not_wait():
    """While another stream to the same client goes on, that one will wait."""
    streams = Streams()
    with unread("127.0.0.1") as (peer, _, _), streams.running(peer):
        await asyncio.wait_for(streams.sent(peer), PATIENCE)


async def test_unix_socket_is_not_waited_for():
    """A peer without a port has all."""
    await asyncio.wait_for(Streams().sent("unix:"), PATIENCE)
