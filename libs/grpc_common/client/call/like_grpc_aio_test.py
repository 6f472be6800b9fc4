import asyncio
from collections.abc import Awaitable

import grpc
import pytest

from grpc_common.client.channel import channel
from grpc_common.testing.backends import Backend

ECHO, HOLD, WATCH, COLLECT, CHAT, UNKNOWN = (
    f"/test.Backend/{name}" for name in ("Echo", "Hold", "Watch", "Collect", "Chat", "Unknown")
)


async def outcome(waiting: Awaitable[object], seconds: float = 20) -> object:
    """Return what is awaited, or what there is to know of its error."""
    try:
        async with asyncio.timeout(seconds):
            return await waiting
    except grpc.aio.AioRpcError as error:
        # C-core says "Deadline Exceeded", or that the stream was removed because of that.
        text = (error.details() or "").replace("Stream removed (Deadline Exceeded)", "Deadline Exceeded")
        return error.code(), text, tuple(error.trailing_metadata() or ())
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (each is an outcome)
        return type(error), str(error)


async def end(call: grpc.aio.Call) -> list[object]:
    """Return all that a call that has ended says of it."""
    asked = call.code(), call.details(), call.trailing_metadata(), call.initial_metadata()
    told = [await outcome(each) for each in asked]
    if told[0] is grpc.StatusCode.DEADLINE_EXCEEDED:
        told[1] = "in either of C-core's words"
    return [*told, call.done(), call.cancelled(), call.cancel()]


async def all_of(call) -> list[bytes]:
    """Return all messages of a stream."""
    return [message async for message in call]


async def good_unary(client, _backend):
    """End well."""
    call = client.unary_unary(ECHO)(b"a")
    before = call.done()
    return [before, await outcome(call), await outcome(call), await outcome(call.wait_for_connection()), call]


async def failed_unary(client, backend):
    """Fail with a status and trailers."""
    backend.failures, backend.trailers = 1, (("key", "value"),)
    call = client.unary_unary(ECHO)(b"a")
    return [await outcome(call), await outcome(call), await outcome(call.wait_for_connection()), call]


async def unknown_method(client, _backend):
    """Ask for what is not there."""
    outcomes = [await outcome(client.unary_unary(UNKNOWN)(b"a"))]
    outcomes.append(await outcome(client.unary_stream(UNKNOWN)(b"a").read()))
    outcomes.append(await outcome(client.stream_unary(UNKNOWN)(iter([b"a"]))))
    return [*outcomes, await outcome(all_of(client.unary_stream(UNKNOWN)(b"a")))]


async def cancelled_at_once(client, _backend):
    """Cancel before anything is sent."""
    call = client.unary_unary(HOLD)(b"a")
    return [call.cancel(), call.cancel(), call.done(), await outcome(call), await outcome(call), call]


async def cancelled_later(client, backend):
    """Cancel what the server works on."""
    call = client.unary_unary(HOLD)(b"a")
    await backend.entered.wait()
    return [call.cancel(), await outcome(call), await outcome(call.wait_for_connection()), call]


async def two_who_wait(client, backend):
    """Wait twice, and stop one of the two."""
    call = client.unary_unary(HOLD)(b"a")
    waiting = [asyncio.ensure_future(outcome(call)) for _ in range(2)]
    await backend.entered.wait()
    waiting[0].cancel()
    return [*await asyncio.gather(*waiting), call]


async def timeout_around(client, _backend):
    """Give up waiting."""
    call = client.unary_unary(HOLD)(b"a")
    return [await outcome(call, 0.05), call]


async def timeout_around_code(client, backend):
    """Give up waiting for the code, which ends nothing."""
    call = client.unary_unary(HOLD)(b"a")
    gave_up, done = await outcome(call.code(), 0.05), call.done()
    backend.release.set()
    return [gave_up, done, await outcome(call), call]


async def past_deadline(client, _backend):
    """Let the deadline pass."""
    call = client.unary_unary(HOLD)(b"a", timeout=0.05)
    return [await outcome(call), call]


async def negative_timeout(client, _backend):
    """Begin after the deadline."""
    call = client.unary_stream(WATCH)(b"a", timeout=-5)
    return [await outcome(all_of(call)), await outcome(call.read()), call]


async def endless_timeout(client, _backend):
    """Set deadlines beyond all clocks."""
    return [
        await outcome(client.unary_unary(ECHO)(b"a", timeout=seconds)) for seconds in (1e18, float("inf"))
    ]


async def serializer_that_raises(client, _backend):
    """Send what can't be sent."""
    unary = client.unary_unary(ECHO, request_serializer=lambda _: 1 / 0)
    stream = client.unary_stream(WATCH, request_serializer=lambda _: 1 / 0)
    return [await outcome(unary(b"a")), await outcome(stream(b"a", timeout=1).read())]


async def deserializer_that_raises(client, _backend):
    """Get what can't be read."""
    unary = client.unary_unary(ECHO, response_deserializer=lambda _: 1 / 0)
    stream = client.unary_stream(WATCH, response_deserializer=lambda _: 1 / 0)
    return [await outcome(unary(b"a")), await outcome(stream(b"a", timeout=1).read())]


async def too_large_message(client, _backend):
    """Send too much."""
    return [await outcome(client.unary_unary(ECHO)(bytes(5 * 2**20)))]


async def metadata_of_every_kind(client, _backend):
    """Pass metadata in each form."""
    echo = client.unary_unary(ECHO)
    kinds = [None, (), [], (("a", "b"),), [("a", "b"), ("c-bin", b"\0")], grpc.aio.Metadata(("a", "b"))]
    return [await outcome(echo(b"a", metadata=kind)) for kind in kinds]


async def stream_read_by_for(client, backend):
    """Iterate, and once more after the end."""
    backend.release.set()
    call = client.unary_stream(WATCH)(b"a")
    first = await outcome(call.initial_metadata())
    return [first, await all_of(call), await all_of(call), await outcome(call.wait_for_connection()), call]


async def stream_read_by_read(client, backend):
    """Read, and beyond the end."""
    backend.release.set()
    call = client.unary_stream(WATCH)(b"a")
    return [*[await outcome(call.read()) for _ in range(4)], call]


async def stream_cancelled_half_way(client, _backend):
    """Cancel after the first message."""
    call = client.unary_stream(WATCH)(b"a")
    first = await outcome(call.read())
    return [first, call.cancel(), await outcome(call.read()), await outcome(call.read()), call]


async def stream_cancelled_by_its_reader(client, _backend):
    """Cancel inside the loop."""
    call = client.unary_stream(WATCH)(b"a")

    async def read():
        async for _ in call:
            call.cancel()

    return [await outcome(read()), call]


async def timeout_around_read(client, _backend):
    """Give up a read."""
    call = client.unary_stream(WATCH)(b"a")
    return [await outcome(call.read()), await outcome(call.read(), 0.05), call, await outcome(call.read())]


async def stream_past_deadline(client, _backend):
    """Let the deadline pass while reading."""
    call = client.unary_stream(WATCH)(b"a", timeout=0.2)
    return [await outcome(all_of(call)), await outcome(call.read()), call]


async def written_and_read(client, _backend):
    """Write and read in turn, and after the end."""
    call = client.stream_stream(CHAT)()
    talk = [call.write(b"a"), call.read(), call.done_writing(), call.done_writing(), call.write(b"b")]
    outcomes = [await outcome(each) for each in talk]
    outcomes += [await outcome(call.read()), await outcome(call.read()), await outcome(call.code())]
    return [*outcomes, await outcome(call.write(b"c")), await outcome(call.done_writing()), call]


async def read_before_written(client, _backend):
    """Wait for an answer first."""
    call = client.stream_stream(CHAT)()
    reading = asyncio.ensure_future(call.read())
    await call.wait_for_connection()
    await call.write(b"a")
    return [await outcome(reading), call.cancel(), call]


async def written(client, _backend):
    """Write, and after the end."""
    call = client.stream_unary(COLLECT)()
    talk = [call.wait_for_connection(), call.write(b"a"), call.write(b"b"), call.done_writing(), call]
    outcomes = [await outcome(each) for each in talk]
    return [*outcomes, await outcome(call.write(b"c")), await outcome(call.done_writing()), call]


async def written_after_cancel(client, _backend):
    """Write after it was cancelled."""
    outcomes = []
    for call in client.stream_unary(COLLECT)(), client.stream_stream(CHAT)():
        outcomes += [await outcome(call.write(b"a")), call.cancel(), await outcome(call.write(b"b"))]
        outcomes += [await outcome(call.done_writing()), *await end(call)]
    return outcomes


async def written_beside_an_iterator(client, _backend):
    """Write where an iterator does."""
    call = client.stream_stream(CHAT)(iter([b"a"]))
    return [await outcome(call.write(b"x")), await outcome(call.done_writing()), await outcome(all_of(call))]


async def callbacks(client, _backend):
    """Ask to be told of the end, before and after it."""
    told = []
    call = client.unary_unary(ECHO)(b"a")
    call.add_done_callback(lambda ended: told.append((ended is call, ended.done())))
    await call
    await asyncio.sleep(0)
    call.add_done_callback(lambda ended: told.append((ended is call, ended.done())))
    return told


SITUATIONS = [
    good_unary,
    failed_unary,
    unknown_method,
    cancelled_at_once,
    cancelled_later,
    two_who_wait,
    timeout_around,
    timeout_around_code,
    past_deadline,
    negative_timeout,
    endless_timeout,
    serializer_that_raises,
    deserializer_that_raises,
    too_large_message,
    metadata_of_every_kind,
    stream_read_by_for,
    stream_read_by_read,
    stream_cancelled_half_way,
    stream_cancelled_by_its_reader,
    timeout_around_read,
    stream_past_deadline,
    written_and_read,
    read_before_written,
    written,
    written_after_cancel,
    written_beside_an_iterator,
    callbacks,
]


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_calls_behave_as_those_of_grpc_aio(situation):
    """In the same situation a call does and says what one of a bare channel of grpc.aio does.

    It differs on purpose where this is of more use: what the caller's iterator raises comes out of the
    call (requests_test.py), and write() on a call that has failed raises its status.
    """

    async def seen(client) -> list[object]:
        outcomes = [
            await end(each) if isinstance(each, grpc.aio.Call) else each
            for each in await situation(client, backend)
        ]
        backend.entered.clear()
        backend.release.clear()
        return outcomes

    async with Backend.serving() as (backend, address):
        async with grpc.aio.insecure_channel(f"ipv4:{address}") as bare:
            expected = await seen(bare)
        async with channel(address, observers=[]) as client:
            assert await seen(client) == expected
