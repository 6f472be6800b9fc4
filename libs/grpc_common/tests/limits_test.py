import asyncio
import re
import subprocess
import sys
import time
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_common.testing.server import serving, serving_process

KIBIBYTE = 2**10
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED

METHODS = {
    "Echo": ("unary_unary", False),
    "Join": ("stream_unary", True),
    "Repeat": ("unary_stream", False),
    "Chat": ("stream_stream", True),
}


def start(channel: grpc.aio.Channel, name: str, request: bytes):
    """Call a method of any type with one message."""
    shape, streams_requests = METHODS[name]
    method = getattr(channel, shape)(f"/test.Methods/{name}")
    return method(iter([request]) if streams_requests else request, timeout=5)


async def status_of(call) -> tuple[grpc.StatusCode, str]:
    """Read a call to its end; return its code and text."""
    try:
        if hasattr(call, "read"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def dial(port: int, *options) -> grpc.aio.Channel:
    """Return a plain channel to the server on `port`."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("variable", ["MAX_RECV_MSG_SIZE", "MAX_SEND_MSG_SIZE"])
async def test_message_over_the_limit_is_refused_with_its_size(name, variable):
    """A message of the limit goes through; one byte more is RESOURCE_EXHAUSTED, and the text has both."""
    async with serving(**{variable: "1KiB"}) as (port, _), dial(port) as channel:
        assert await status_of(start(channel, name, bytes(KIBIBYTE))) == (grpc.StatusCode.OK, "")
        code, text = await status_of(start(channel, name, bytes(KIBIBYTE + 1)))
        assert code is RESOURCE_EXHAUSTED
        assert re.search(r"larger than max.* \(1025 vs\. 1024", text)
        assert await status_of(start(channel, name, bytes(KIBIBYTE))) == (grpc.StatusCode.OK, "")


async def test_burst_is_admitted_up_to_the_bound():
    """Of 200 calls at once 50 get in and all others are refused; once those have ended 50 get in."""
    async with serving(MAX_CONCURRENT_CALLS="50") as (port, methods), dial(port) as channel:
        hold = channel.unary_unary("/test.Methods/Hold")
        await channel.unary_unary("/test.Methods/Echo")(b"connects")
        calls = {asyncio.ensure_future(status_of(hold(b"", timeout=20))) for _ in range(200)}
        refused: list = []
        while len(refused) < 150:
            done, calls = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            refused += [call.result() for call in done]
        assert {code for code, _ in refused} == {RESOURCE_EXHAUSTED}
        assert {text for _, text in refused} == {
            "the server is busy with 50 calls, which is all that it takes at a time"
        }
        assert (len(calls), methods.entered.qsize()) == (50, 50)
        methods.opened.set()
        assert {code for code, _ in await asyncio.gather(*calls)} == {grpc.StatusCode.OK}
        methods.opened.clear()
        again = [asyncio.ensure_future(status_of(hold(b"", timeout=20))) for _ in range(50)]
        for _ in range(100):
            await methods.entered.get()
        methods.opened.set()
        assert {code for code, _ in await asyncio.gather(*again)} == {grpc.StatusCode.OK}


async def test_refusal_comes_at_once():
    """A full server needs milliseconds to say so."""
    async with serving(MAX_CONCURRENT_CALLS="1") as (port, methods), dial(port) as channel:
        held = channel.unary_unary("/test.Methods/Hold")(b"", timeout=20)
        await methods.entered.get()
        seconds = []
        for _ in range(50):
            start_time = time.monotonic()
            assert (await status_of(start(channel, "Echo", b"")))[0] is RESOURCE_EXHAUSTED
            seconds.append(time.monotonic() - start_time)
        print(f"refused within {sorted(seconds)[25]:.4f} s, {max(seconds):.4f} s at most")
        # Most of the others have waited for a processor, if the machine is busy.
        assert min(seconds) < 0.01
        methods.opened.set()
        assert await held == b""


async def test_calls_without_a_limit():
    """A server whose default deadlines are `none` serves calls without a deadline, unary and streaming."""
    async with (
        serving(DEFAULT_DEADLINE="none", DEFAULT_STREAM_DEADLINE="none") as (port, _),
        dial(port) as channel,
    ):
        assert await channel.unary_unary("/test.Methods/Echo")(b"a") == b"a"
        assert [answer async for answer in channel.unary_stream("/test.Methods/Repeat")(b"a")] == [b"a", b"a"]


BURST = """
import asyncio, collections, grpc, sys

async def burst(port):
    codes = collections.Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary("/test.Methods/Echo")

        async def call():
            codes[(await echo(b"", timeout=30).code()).name] += 1

        await asyncio.gather(*(call() for _ in range(4000)))
    print(*codes.elements(), sep="\\n")

asyncio.run(burst(sys.argv[1]))
"""


async def test_burst_beyond_grpcs_own_queue_is_answered():
    """Of 4000 calls that come faster than Python takes them none is CANCELLED: each is served or refused."""
    with serving_process() as (port, _):
        command = [sys.executable, "-c", BURST, str(port)]
        output = await asyncio.to_thread(subprocess.check_output, command, text=True)
    codes = Counter(output.split())
    assert codes.total() == 4000
    assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}


async def test_full_server_answers_health_checks():
    """A server that is full is busy, not ill: no probe or balancing client may take it for dead."""
    async with serving(MAX_CONCURRENT_CALLS="1") as (port, methods), dial(port) as channel:
        held = channel.unary_unary("/test.Methods/Hold")(b"", timeout=20)
        await methods.entered.get()
        assert (await status_of(start(channel, "Echo", b"")))[0] is RESOURCE_EXHAUSTED
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "liveness", "readiness", "test.Methods"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
            async for response in health.Watch(request):
                assert response.status == health_pb2.HealthCheckResponse.SERVING
                break
        methods.opened.set()
        assert await held == b""


RETRIES = """{"methodConfig": [{"name": [{}], "retryPolicy": {
    "maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1,
    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}"""


async def test_retrying_client_comes_back_when_it_is_told_to():
    """A client that would retry in a millisecond waits for the half second that the server asks for."""
    async with (
        serving(MAX_CONCURRENT_CALLS="1") as (port, methods),
        dial(port, ("grpc.service_config", RETRIES)) as channel,
    ):
        held = channel.unary_unary("/test.Methods/Hold")(b"first", timeout=20)
        await methods.entered.get()
        begin = time.monotonic()
        call = start(channel, "Echo", b"second")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(call), 0.25)
        methods.opened.set()
        assert await held == b"first"
        assert await call == b"second"
        # More only if the machine is busy; the call's own deadline is 5.
        assert 0.45 < time.monotonic() - begin < 4


@pytest.mark.parametrize("name", ["Echo", "Join", "Repeat", "Chat"])
async def test_large_messages_have_a_bound_together(name):
    """While one holds the memory for large messages, small ones go through and large ones are refused."""
    large = bytes(600 * KIBIBYTE)
    limits = {"MAX_MESSAGE_MEMORY": "1MiB", "MAX_CONCURRENT_CALLS": "10"}
    async with serving(**limits) as (port, methods), dial(port) as channel:
        held = channel.unary_unary("/test.Methods/Hold")(large, timeout=20)
        await methods.entered.get()
        assert (await status_of(start(channel, name, b"small")))[0] is grpc.StatusCode.OK
        code, text = await status_of(start(channel, name, large))
        assert code is RESOURCE_EXHAUSTED
        assert "no memory for a message of 614400 bytes" in text
        methods.opened.set()
        assert await held == large
        for _ in range(5):  # each gives back what it took
            assert (await status_of(start(channel, name, large)))[0] is grpc.StatusCode.OK


async def test_message_larger_than_the_memory_for_all():
    """A message that is allowed by itself finds room if it is the only one."""
    async with serving(MAX_MESSAGE_MEMORY="1KiB") as (port, _), dial(port) as channel:
        assert (await status_of(start(channel, "Echo", bytes(600 * KIBIBYTE))))[0] is grpc.StatusCode.OK
