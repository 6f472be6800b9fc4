import asyncio
import gzip
import os
import resource
import ssl
import statistics
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from grpc_common.core.sockets import connections
from grpc_common.testing.http2 import (
    CALL,
    CONTINUATION,
    DATA,
    ECHO,
    END_HEADERS,
    HEADERS,
    HELLO,
    PING,
    RST_STREAM,
    SETTINGS,
    fields,
    frame,
    message,
)
from grpc_common.testing.server import memory, serving_process

KEEPALIVE = 1.0
"""Seconds of silence before the server pings, and as many until it hangs up."""

PATIENCE = 12
"""Seconds: a busy machine may need more than KEEPALIVE says; with the default times it would be 15."""

MEBIBYTE = 2**20


def client_hello() -> bytes:
    """Return the first bytes of a TLS client."""
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), sent, server_hostname="server.test"
        ).do_handshake()
    return sent.read()


@pytest.fixture(scope="module")
def process():
    """Run a server in a process of its own; the port and the process id."""
    times = {"KEEPALIVE_TIME": f"{KEEPALIVE}s", "KEEPALIVE_TIMEOUT": f"{KEEPALIVE}s"}
    with serving_process(**times) as process:
        yield process


@pytest.fixture
async def port(process):
    """Return the server's port; after the test the server serves as before, and has no connection left."""
    port, _ = process
    yield port
    await assert_serves(port)
    await assert_no_connection(port)


@pytest.fixture
def growth(process):
    """Return a function for the bytes by which the server's memory has grown at most since the test began."""
    pid = process[1]
    Path(f"/proc/{pid}/clear_refs").write_text(
        "5"
    )  # sets the peak to what it is now; see proc_pid_clear_refs(5)
    before = memory(pid, "VmRSS")
    return lambda: memory(pid, "VmHWM") - before


async def assert_serves(port: int) -> list[float]:
    """Make calls as a normal client, and return the seconds that each took."""
    seconds = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary("/test.Methods/Echo")
        for number in range(100):
            start = time.monotonic()
            assert await echo(str(number).encode(), timeout=20, wait_for_ready=True) == str(number).encode()
            seconds.append(time.monotonic() - start)
    return seconds[1:]  # the first has connected


async def assert_no_connection(port: int) -> None:
    """Wait, not for long, until the server has no connection."""
    async with asyncio.timeout(PATIENCE):
        while connections(port):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def connected(port: int):
    """Connect; yield both directions."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answer_to(port: int, sent: bytes) -> bytes:
    """Send this and nothing more; return all that the server sends until it hangs up."""
    async with connected(port) as (reader, writer), asyncio.timeout(PATIENCE):
        writer.write(sent)
        received = b""
        with suppress(ConnectionError):
            while chunk := await reader.read(2**16):
                received += chunk
        return received


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(os.urandom(10_000), id="random"),
        pytest.param(bytes(10_000), id="zeros"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: server.test\r\n\r\n", id="HTTP/1.1"),
        pytest.param(client_hello(), id="TLS"),
        pytest.param(HELLO + b"\xff\xff\xff" + bytes(6), id="frame of 16 MiB"),
        pytest.param(HELLO + frame(SETTINGS, payload=b"12345"), id="settings of 5 bytes"),
        pytest.param(HELLO + frame(CONTINUATION, 1, ECHO), id="continuation of nothing"),
    ],
)
async def test_peer_that_sends_garbage_is_cut_off_at_once(port, sent):
    """What is no HTTP/2 ends the connection, without waiting for keepalive to do so."""
    assert b"ping_timeout" not in await answer_to(port, sent)


CUT_OFF = [
    pytest.param(b"", id="nothing"),
    pytest.param(HELLO[:10], id="preface"),
    pytest.param(HELLO[:-1], id="SETTINGS"),
    pytest.param(CALL[:-10], id="HEADERS"),
    pytest.param((CALL + message(bytes(100)))[:-50], id="DATA"),
    pytest.param(CALL + message(bytes(100_000))[: 2**14 + 9], id="message"),
    pytest.param(CALL, id="call without a message"),
]


@pytest.mark.parametrize("sent", CUT_OFF)
async def test_peer_that_falls_silent_is_cut_off(port, sent):
    """A connection on which nothing more comes, in the middle of whatever, ends within time + timeout."""
    assert b"ping_timeout" in await answer_to(port, sent)


@pytest.mark.parametrize("sent", CUT_OFF)
async def test_peer_that_hangs_up_in_the_middle(port, sent):
    """A connection that ends in the middle of whatever leaves nothing behind."""
    async with connected(port) as (reader, writer):
        writer.write(sent)
        assert await reader.read(9)  # the server has accepted it


async def test_announced_gibibyte_takes_no_memory(port, growth):
    """A message of 1 GiB is refused by its length prefix, and no memory is set aside for it."""
    received = await answer_to(port, CALL + frame(DATA, 1, b"\0" + (2**30).to_bytes(4) + bytes(100)))
    assert b"\x0bgrpc-status\x018" in received  # RESOURCE_EXHAUSTED
    assert b"larger than max (1073741824 vs. 10485760)" in received
    assert growth() < 20 * MEBIBYTE


async def test_compressed_message_that_grows_takes_no_memory(port, growth):
    """A message that is small until it is decompressed is refused like a large one."""
    call = HELLO + frame(HEADERS, 1, ECHO + fields(grpc_encoding="gzip"), flags=END_HEADERS)
    received = await answer_to(port, call + message(gzip.compress(bytes(50 * MEBIBYTE)), compressed=True))
    assert b"\x0bgrpc-status\x018" in received  # RESOURCE_EXHAUSTED
    assert b"Decompressed message larger than max" in received
    assert growth() < 30 * MEBIBYTE  # the limit of 10 MiB, and what was sent


async def test_endless_headers_are_cut_off(port):
    """Headers that never end (CVE-2024-27316) hold a connection no longer than silence does."""
    more = frame(CONTINUATION, 1, fields(**{f"x_{number}": "v" * 100 for number in range(100)}))
    await answer_to(port, HELLO + frame(HEADERS, 1, ECHO) + more * 1000)


async def test_flood_of_pings_is_cut_off(port):
    """A peer that pings without a pause is told why it is cut off."""
    received = await answer_to(port, HELLO + frame(PING, payload=bytes(8)) * 1000)
    assert received.endswith(b"too_many_pings")


async def test_flood_of_calls_that_are_reset(port):
    """A peer that opens and resets 5000 calls at once (CVE-2023-44487) holds others up, but not for long."""
    flood = (
        frame(HEADERS, stream, ECHO, flags=END_HEADERS) + frame(RST_STREAM, stream, bytes(4))
        for stream in range(1, 10_001, 2)
    )
    async with connected(port) as (_, writer):
        writer.write(HELLO + b"".join(flood))
        await writer.drain()
        start = time.monotonic()
        await assert_serves(port)
        print(f"served 100 calls after {time.monotonic() - start:.2f} s")


IDLE_CLIENT = """
import socket, sys

port, count, hello = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
connections = []
for _ in range(count):
    connections.append(socket.create_connection(("127.0.0.1", port)))
    connections[-1].sendall(hello)
for connection in connections:
    assert connection.recv(9), "closed by the server"
print("open", flush=True)
sys.stdin.read()
"""


def idle_client(port: int, count: int) -> subprocess.Popen[bytes]:
    """Open `count` connections from a process of their own, which says when it has, until its input ends."""
    command = [sys.executable, "-c", IDLE_CLIENT, str(port), str(count), HELLO.hex()]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def descriptors():
    """Raise the limit of open files for the processes of the test; return how many each may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_thousands_of_idle_connections_slow_nobody_down(descriptors):
    """With 10 000 idle connections, or as many as there may be, a new client's calls take a few ms."""
    count = min(10_000, descriptors - 200)
    with (
        serving_process(
            KEEPALIVE_TIME="300s", KEEPALIVE_MAX_CONNECTION_AGE="300s", MAX_CONNECTIONS="20000"
        ) as (port, pid),
        idle_client(port, count) as client,
    ):
        usual = statistics.median(await assert_serves(port))
        before = memory(pid, "VmRSS")
        assert await asyncio.to_thread(client.stdout.readline) == b"open\n"
        # The kernel's list is no snapshot: one may be missed or told twice while others come and go.
        assert len(connections(port)) == pytest.approx(count, rel=0.01)
        each = (memory(pid, "VmRSS") - before) / count
        seconds = await assert_serves(port)
        median, longest = statistics.median(seconds), max(seconds)
        print(
            f"{count} idle connections of {each:.0f} bytes; calls of {median:.4f} s, {longest:.4f} s at most"
        )
        client.stdin.close()
        await asyncio.to_thread(client.wait)
        await assert_no_connection(port)
    assert median < usual + 0.02
