import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar

import grpc
import pytest

from grpc_common.client.call.requests import Requests, check_metadata
from grpc_common.client.channel import channel
from grpc_common.testing.backends import Backend

COLLECT, CHAT, UNKNOWN = (f"/test.Backend/{name}" for name in ("Collect", "Chat", "Unknown"))

span: ContextVar[str] = ContextVar("span", default="")


@pytest.fixture
async def client():
    """Yield a channel to a backend."""
    async with Backend.serving() as (_backend, address), channel(address, observers=[]) as opened:
        yield opened


class Iterator:
    """An asynchronous iterator that is no generator."""

    def __init__(self, *requests: bytes) -> None:
        self._rest = list(requests)

    def __aiter__(self):
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop(0)


async def generator(*requests: bytes) -> AsyncIterator[bytes]:
    """Yield requests with a wait before each."""
    for request in requests:
        await asyncio.sleep(0)
        yield request


@pytest.mark.parametrize("make", [Iterator, generator, lambda *each: each, lambda *each: iter(each)])
@pytest.mark.parametrize("requests", [(), (b"a",), (b"a", b"b", b"c")])
async def test_requests_of_every_kind_are_sent_in_order(client, make, requests):
    """An iterable of either kind is sent from its first request to its last, and may be empty."""
    assert await client.stream_unary(COLLECT)(make(*requests)) == b"".join(requests)
    assert [each async for each in client.stream_stream(CHAT)(make(*requests))] == list(requests)


@pytest.mark.parametrize("before", [0, 1, 2])
async def test_error_of_the_iterator_reaches_the_caller(client, before):
    """What the caller's own iterator raises ends the call, and comes out of it."""

    async def broken():
        for _ in range(before):
            yield b"a"
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await client.stream_unary(COLLECT)(broken())
    call = client.stream_stream(CHAT)(broken())
    with pytest.raises(ValueError, match="mine"):
        [_ async for _ in call]
    assert await call.code() is grpc.StatusCode.INTERNAL
    assert not call.cancelled()


async def test_status_that_the_iterator_raises_is_its_own(client):
    """An iterator that passes on another stream ends with that one's status, and so does its call."""

    async def relayed():
        yield b"a"
        await client.unary_unary(UNKNOWN)(b"")

    with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
        await client.stream_unary(COLLECT)(relayed())


async def test_what_is_no_iterable_is_told(client):
    """A request in the place of an iterator raises its TypeError where the call is awaited."""
    with pytest.raises(TypeError, match="not iterable"):
        await client.stream_unary(COLLECT)(5)


@pytest.mark.parametrize("sent", [0, 1])
async def test_iterator_is_let_go_when_the_call_has_ended(client, sent):
    """A generator that waits for more ends as soon as the server has answered, or the caller cancels."""
    ended = asyncio.Event()
    begun = asyncio.Event()

    async def endless():
        try:
            for _ in range(sent):
                yield b"a"
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(grpc.aio.AioRpcError):
        await client.stream_unary(UNKNOWN)(endless())
    if begun.is_set():  # else it was never begun
        await asyncio.wait_for(ended.wait(), 20)
    ended.clear()
    begun.clear()
    call = client.stream_unary(COLLECT)(endless())
    await asyncio.wait_for(begun.wait(), 20)
    call.cancel()
    await asyncio.wait_for(ended.wait(), 20)


async def test_iterator_runs_in_one_task(client):
    """What a generator sets for its task, such as a span or a timeout, holds until its end."""
    tasks = set()

    async def scoped():
        token = span.set("mine")
        async with asyncio.timeout(60):
            for _ in range(3):
                tasks.add(asyncio.current_task())
                assert span.get() == "mine"
                yield b"a"
        span.reset(token)
        tasks.add(asyncio.current_task())

    assert await client.stream_unary(COLLECT)(scoped()) == b"aaa"
    assert len(tasks) == 1


async def test_next_attempt_gets_the_first_request_again():
    """As long as it was not sent each attempt gets every request, and only the newest one reads on."""
    requests = Requests(generator(b"a", b"b"))
    first = requests.attempt()
    assert await anext(first) == b"a"
    assert requests.take_back()
    second = requests.attempt()
    assert await anext(second) == b"a"
    with pytest.raises(StopAsyncIteration):  # its write has ended only now
        await anext(first)
    assert [each async for each in second] == [b"b"]
    assert not requests.take_back()


async def test_attempt_that_waits_for_the_first_request_may_be_given_up():
    """The next attempt gets the request that the first one has waited for."""
    release = asyncio.Event()

    async def slow():
        await release.wait()
        yield b"a"

    requests = Requests(slow())
    first = asyncio.ensure_future(anext(requests.attempt(), None))
    await asyncio.sleep(0)
    assert requests.take_back()
    second = asyncio.ensure_future(anext(requests.attempt(), None))
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(first, second) == [None, b"a"]


async def test_no_attempt_reads_on_once_it_was_taken_back():
    """Between two attempts the one that has failed gets nothing more."""
    requests = Requests(generator(b"a", b"b"))
    first = requests.attempt()
    assert await anext(first) == b"a"
    assert requests.take_back()
    assert [each async for each in first] == []
    assert [each async for each in requests.attempt()] == [b"a", b"b"]


@pytest.mark.parametrize("error", [ValueError("mine"), asyncio.CancelledError()])
async def test_every_attempt_sees_the_error_of_the_first_request(error):
    """Who waits for a request that never comes is told why."""

    async def broken():
        await asyncio.sleep(0)
        raise error
        yield b""

    requests = Requests(broken())
    attempts = [asyncio.ensure_future(anext(requests.attempt())) for _ in range(2)]
    await asyncio.wait(attempts, timeout=20)
    for attempt in attempts:
        with pytest.raises(type(error)):
            await attempt
    assert requests.error is error


async def test_messages_keep_their_order(client):
    """Many small messages come back in order, while a task writes and another one reads."""
    call = client.stream_stream(CHAT)()
    sent = [b"%d" % number for number in range(3000)]

    async def write() -> None:
        for message in sent:
            await call.write(message)
        await call.done_writing()

    writing = asyncio.create_task(write())
    assert [message async for message in call] == sent
    await writing


@pytest.mark.parametrize(
    "metadata", [[("key", 5)], [(5, "value")], [(b"key", "value")], [("key", None)], [("key", ["a"])]]
)
async def test_metadata_of_a_wrong_type_is_told(client, metadata):
    """Every way to use a call raises it at once; grpc.aio leaves writers waiting for ever."""
    with pytest.raises(TypeError, match="metadata"):
        check_metadata(metadata)
    call = client.stream_unary(COLLECT)(metadata=metadata)
    async with asyncio.timeout(20):
        with pytest.raises(TypeError, match="metadata"):
            await call.write(b"a")
        with pytest.raises(TypeError, match="metadata"):
            await call
    stream = client.stream_stream(CHAT)(metadata=metadata)
    async with asyncio.timeout(20):
        with pytest.raises(TypeError, match="metadata"):
            await stream.wait_for_connection()


def test_metadata_with_half_a_character_is_told():
    """It has no bytes; what has is left to grpc."""
    check_metadata([("key", "value"), ("key-bin", b"\0"), ("Key", "ä")])
    with pytest.raises(UnicodeEncodeError):
        check_metadata([("key", "\udc80")])
