"""Clients that are gone: what they have not sent is not taken for the end of what they had to send."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common.testing.http2 import DATA, END_HEADERS, HEADERS, HELLO, RST_STREAM, frame, request
from grpc_common.testing.server import serving

MANY = range(1, 2 * 500, 2)
"""The numbers of 500 streams: more than an engine takes in one turn of its loop."""

CANCEL = (8).to_bytes(4)
MESSAGE = b"\0\0\0\0\1x"


@asynccontextmanager
async def calls(port, path, data=b""):
    """Begin many calls on one connection, each with `data` and without its end; yield the connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HELLO)
    for stream in MANY:
        writer.write(frame(HEADERS, stream, request(path), flags=END_HEADERS))
        if data:
            writer.write(frame(DATA, stream, data))
    yield writer
    writer.transport.abort()


def hang_up(writer):
    """Close the connection, as the kernel does for a client that was killed."""
    writer.transport.abort()


def reset_all(writer):
    """Cancel each call."""
    writer.write(b"".join(frame(RST_STREAM, stream, CANCEL) for stream in MANY))


async def until(condition):
    """Wait for what has no event."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


LEAVING = pytest.mark.parametrize("leave", [hang_up, reset_all])


@LEAVING
async def test_requests_that_were_cut_off_are_not_whole(leave):
    """No handler sees the end of a stream of requests whose client is gone, however many it had."""
    seen = Counter()

    async def gather(requests, _context):
        seen["begun"] += 1
        try:
            async for _ in requests:
                seen["messages"] += 1
            seen["whole"] += 1
        finally:
            seen["ended"] += 1
        return b""

    methods = {"Gather": grpc.stream_unary_rpc_method_handler(gather)}
    async with (
        serving(methods, MAX_CONCURRENT_STREAMS="1000") as (port, _),
        calls(port, "/test.Methods/Gather", MESSAGE) as writer,
    ):
        await until(lambda: seen["messages"] == len(MANY))
        leave(writer)
        await until(lambda: seen["ended"] == len(MANY))
    assert seen == {"begun": 500, "messages": 500, "ended": 500}


@LEAVING
async def test_calls_without_a_message_are_no_fault_of_the_server(leave):
    """Clients that leave before their request is there are CANCELLED in log and metrics, and not INTERNAL."""
    with capture_logs() as logs:
        async with (
            serving(MAX_CONCURRENT_STREAMS="1000") as (port, _),
            calls(port, "/test.Methods/Echo") as writer,
        ):
            await asyncio.sleep(0.1)  # until the calls have begun without a message
            leave(writer)
            await until(lambda: sum(entry["event"] == "call" for entry in logs) == len(MANY))
    assert Counter(entry["code"] for entry in logs if entry["event"] == "call") == {"CANCELLED": 500}


async def test_two_tasks_that_read():
    """Each has a message of its own, and each sees the end."""

    async def both(_requests, context):
        messages = await asyncio.gather(context.read(), context.read())
        for _ in range(3):
            ends = await asyncio.gather(context.read(), context.read())
            assert ends == [grpc.aio.EOF] * 2
        return b"".join(sorted(messages))

    methods = {"Both": grpc.stream_unary_rpc_method_handler(both)}
    async with (
        serving(methods) as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = channel.stream_unary("/test.Methods/Both")(timeout=10)
        for message in (b"1", b"2"):
            await call.write(message)
            await asyncio.sleep(0.05)  # the second reader waits, too
        await call.done_writing()
        assert await call == b"12"


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
async def test_done_callbacks_that_fail(error):
    """They keep no place of a call, and end neither other calls nor the server."""

    def fail(_context):
        raise error

    async def answer(request, context):
        context.add_done_callback(fail)
        return request

    methods = {"Answer": grpc.unary_unary_rpc_method_handler(answer)}
    async with (
        serving(methods, MAX_CONCURRENT_CALLS="1") as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for _ in range(3):
            assert await channel.unary_unary("/test.Methods/Answer")(b"x", timeout=10) == b"x"


async def test_headers_are_sent_once():
    """A second time is a mistake of the servicer, which is told."""

    async def twice(request, context):
        await context.send_initial_metadata((("n", "1"),))
        with pytest.raises(grpc.aio.UsageError):
            await context.send_initial_metadata((("n", "2"),))
        return request

    methods = {"Twice": grpc.unary_unary_rpc_method_handler(twice)}
    async with (
        serving(methods) as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = channel.unary_unary("/test.Methods/Twice")(b"x", timeout=10)
        assert await call == b"x"
        assert (await call.initial_metadata())["n"] == "1"
