import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack

import grpc
import pytest

from grpc_common.client.channel import ChannelConfig, Keepalive, channel
from grpc_common.config.sections import KeepaliveConfig
from grpc_common.core.sockets import connections
from grpc_common.testing.server import serving, serving_process

SLACK = 4
"""Seconds that a busy machine may need on top; the default times are still told from those of a test."""


def dial(port: int, *options) -> grpc.aio.Channel:
    """Return a plain channel to the server on `port`, with a connection of its own."""
    alone = ("grpc.use_local_subchannel_pool", 1)
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[alone, *options])


async def until(reached) -> float:
    """Wait, not for long, until the function returns true; return the seconds that it took."""
    start = time.monotonic()
    async with asyncio.timeout(20):
        while not reached():
            await asyncio.sleep(0.01)
    return time.monotonic() - start


CLIENT = """
import grpc, sys

with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}") as channel:
    channel.unary_unary("/test.Methods/Echo")(b"", timeout=5)
    print("connected", flush=True)
    sys.stdin.read()
"""


def client_process(port: int) -> subprocess.Popen[bytes]:
    """Connect from a process of its own, which says when it has, until its input ends."""
    command = [sys.executable, "-c", CLIENT, str(port)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def test_server_finds_a_stopped_client():
    """The connection of a client that stands still is closed within time + timeout."""
    async with serving(KEEPALIVE_TIME="1s", KEEPALIVE_TIMEOUT="1s") as (port, _):
        with client_process(port) as client:
            assert await asyncio.to_thread(client.stdout.readline) == b"connected\n"
            os.kill(client.pid, signal.SIGSTOP)
            assert connections(port)
            seconds = await until(lambda: not connections(port))
            client.kill()
    print(f"found after {seconds:.2f} s")
    assert seconds < 1 + 1 + SLACK


async def test_client_leaves_a_stopped_server():
    """When one of two servers stands still, all calls succeed again within time + timeout."""
    config = ChannelConfig(keepalive=Keepalive(time=5, timeout=1))
    with serving_process() as (first, _), serving_process() as (second, stopped):
        async with channel(f"ipv4:127.0.0.1:{first},127.0.0.1:{second}", config=config) as client:
            echo = client.unary_unary("/test.Methods/Peer")
            while len(connections(first)) + len(connections(second)) < 2:
                await echo(b"")
            # Until the pings of flow control are over, which would find it, too.
            await asyncio.sleep(1)
            os.kill(stopped, signal.SIGSTOP)
            start = time.monotonic()
            in_a_row = failures = 0
            while in_a_row < 10:
                try:
                    await echo(b"", timeout=0.2)
                    in_a_row += 1
                except grpc.aio.AioRpcError:
                    in_a_row = 0
                    failures += 1
                assert time.monotonic() - start < 5 + 1 + SLACK
    print(f"found after {time.monotonic() - start:.2f} s")
    assert failures


async def test_client_that_pings_too_often_is_cut_off():
    """A client whose keepalive time is below the server's min_time loses its connection, and learns why."""
    eager = [("grpc.keepalive_time_ms", 1000), *Keepalive().options()[1:]]
    async with serving() as (port, _), dial(port, *eager) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.unary_unary("/test.Methods/Hold")(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "Too many pings"


async def test_our_clients_are_not_cut_off():
    """With the default times, or the least that our client takes, no ping is one too many."""
    least = Keepalive(time=KeepaliveConfig().min_time)
    await asyncio.gather(
        *(
            assert_not_cut_off(keepalive, calls=calls)
            for keepalive in (Keepalive(), least)
            for calls in (0, 1)
        )
    )


async def assert_not_cut_off(keepalive: Keepalive, *, calls: int) -> None:
    """Let a client ping, while `calls` run, with a time so much shorter that it does each second.

    More often gRPC's clients never do. The fourth ping is the one that would be punished.
    """
    options = dict(keepalive.options()) | {"grpc.keepalive_time_ms": 1000}
    min_time = f"{KeepaliveConfig().min_time / keepalive.time}s"
    async with (
        serving(KEEPALIVE_MIN_TIME=min_time) as (port, methods),
        dial(port, *options.items()) as client,
    ):
        peer = client.unary_unary("/test.Methods/Peer")
        connection = await peer(b"")
        held = [client.unary_unary("/test.Methods/Hold")(b"", timeout=10) for _ in range(calls)]
        await asyncio.sleep(4.5)
        methods.opened.set()
        assert await asyncio.gather(*held) == [b""] * calls
        assert await peer(b"") == connection


async def test_connections_of_one_age_do_not_end_at_once():
    """Clients that connected together reconnect over 10 % of the age to each side, and no call fails."""
    age, clients = 8.0, 24

    async def reconnected(client: grpc.aio.Channel) -> float:
        peer = client.unary_unary("/test.Methods/Peer")
        start = time.monotonic()
        connection = await peer(b"", timeout=20)
        while await peer(b"", timeout=20) == connection:
            await asyncio.sleep(0.1)
        return time.monotonic() - start

    async with serving(KEEPALIVE_MAX_CONNECTION_AGE=f"{age}s") as (port, _), AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(dial(port)) for _ in range(clients)]
        ages = await asyncio.gather(*map(reconnected, channels))
    spread = max(ages) - min(ages)
    print(f"reconnected after {min(ages):.2f} to {max(ages):.2f} s")
    assert 0.9 * age - 0.1 < min(ages)
    assert max(ages) < 1.1 * age + SLACK
    assert spread > 0.1 * age


async def test_idle_connection_is_closed():
    """A connection without calls ends, one with a call does not, and the next call connects anew."""
    async with serving(KEEPALIVE_MAX_CONNECTION_IDLE="300ms") as (port, methods), dial(port) as client:
        peer = client.unary_unary("/test.Methods/Peer")
        call = client.unary_unary("/test.Methods/Hold")(b"", timeout=10)
        connection = await peer(b"")
        await asyncio.sleep(1)
        assert await peer(b"") == connection
        methods.opened.set()
        await call
        await until(lambda: not connections(port))
        assert await peer(b"") != connection


async def test_stream_is_cut_after_age_and_grace():
    """A stream may outlast its connection's age by the grace; a longer one is UNAVAILABLE."""
    times = {"KEEPALIVE_MAX_CONNECTION_AGE": "500ms", "KEEPALIVE_MAX_CONNECTION_AGE_GRACE": "4s"}
    async with serving(**times) as (port, _), dial(port) as client:
        chat = client.stream_stream("/test.Methods/Chat")
        start = time.monotonic()
        shorter, longer = chat(timeout=20), chat(timeout=20)
        for stream in (shorter, longer):
            await stream.write(b"first")
            assert await stream.read() == b"first"
        await asyncio.sleep(1.1)  # past the age, within the grace
        await shorter.write(b"last")
        assert await shorter.read() == b"last"
        await shorter.done_writing()
        assert await shorter.code() is grpc.StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await longer.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "max connection age" in caught.value.details().lower()
        assert 4.4 < time.monotonic() - start < 4.6 + SLACK
