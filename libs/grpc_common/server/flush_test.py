import asyncio
import socket
from contextlib import contextmanager

import pytest

from grpc_common.core import sockets
from grpc_common.core.sockets import Sending
from grpc_common.server.flush import Flush

PATIENCE = 10
"""Seconds: enough for a busy machine, and a third of what a client that reads nothing is waited for."""


@contextmanager
def unread(address: str):
    """Yield a peer, the bytes that it was sent and has not read, its socket and the server's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
        listener.accept()[0] as server,
    ):
        host = "ipv6:%5B::1%5D" if ":" in address else f"ipv4:{address}"
        yield f"{host}:{client.getsockname()[1]}", fill(server), client, server


def fill(server: socket.socket) -> int:
    """Write until the kernel takes no more, and return how many bytes it took."""
    server.settimeout(0)
    written = 0
    with pytest.raises(BlockingIOError):
        while True:
            written += server.send(bytes(100_000))
    return written


async def waits(task: asyncio.Task) -> bool:
    """Return whether a task goes on for a while."""
    await asyncio.wait([task], timeout=0.1)
    return not task.done()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_end_of_a_stream_waits_for_the_client(address):
    """It waits until the client has all, and no longer."""
    with unread(address) as (peer, written, client, _):
        waiting = asyncio.create_task(Flush().sent(peer))
        assert await waits(waiting)
        await asyncio.to_thread(client.recv, written, socket.MSG_WAITALL)
        await asyncio.wait_for(waiting, PATIENCE)


async def test_end_of_a_stream_does_not_wait_for_what_is_written_later():
    """Other calls fill the queue as fast as the client empties it, and the end comes all the same."""
    with unread("127.0.0.1") as (peer, written, client, server):
        waiting = asyncio.create_task(Flush().sent(peer))
        assert await waits(waiting)
        read = 0
        while read < written:
            read += len(client.recv(100_000))
            fill(server)
        await asyncio.wait_for(waiting, PATIENCE)


async def test_kernel_that_does_not_count_is_waited_for_until_nothing_is_unsent(monkeypatch):
    """A kernel before 4.19 does not tell how many bytes have left, only how many have not."""
    tcp_info = Sending.from_tcp_info
    monkeypatch.setattr(sockets.Sending, "from_tcp_info", lambda info: tcp_info(info[:148]))
    with unread("127.0.0.1") as (peer, written, client, _):
        waiting = asyncio.create_task(Flush().sent(peer))
        assert await waits(waiting)
        await asyncio.to_thread(client.recv, written, socket.MSG_WAITALL)
        await asyncio.wait_for(waiting, PATIENCE)


@pytest.mark.parametrize("within", [-1, 0, 0.01])
async def test_wait_is_bounded_by_what_the_call_has_left(within):
    """A client that reads nothing is waited for no longer than told."""
    with unread("127.0.0.1") as (peer, *_):
        await asyncio.wait_for(Flush().sent(peer, within), PATIENCE)


async def test_client_that_is_gone_is_not_waited_for():
    """The wait ends with the connection."""
    with unread("127.0.0.1") as (peer, _, client, _):
        waiting = asyncio.create_task(Flush().sent(peer))
        assert await waits(waiting)
        client.close()  # with unread bytes, which resets the connection
        await asyncio.wait_for(waiting, PATIENCE)


async def test_stream_that_is_not_the_last_does_not_wait():
    """While another stream to the same client goes on, that one will wait, and the last one does."""
    flush = Flush()
    with unread("127.0.0.1") as (peer, *_):
        with flush.stream(peer):
            with flush.stream(peer):
                pass
            await asyncio.wait_for(flush.sent(peer), PATIENCE)
        waiting = asyncio.create_task(flush.sent(peer))
        assert await waits(waiting)
        waiting.cancel()


async def test_unix_socket_is_not_waited_for():
    """A peer without a port has all."""
    await asyncio.wait_for(Flush().sent("unix:"), PATIENCE)
