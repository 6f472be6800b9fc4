import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from grpc_common import read_all
from grpc_common.client.channel import channel
from grpc_common.testing.backends import Backend, FedEndpoints
from grpc_common.testing.recorded_calls import RecordedCalls

WATCH, ECHO = "/test.Backend/Watch", "/test.Backend/Echo"


@asynccontextmanager
async def passing(_call):
    """Be an interceptor that changes nothing."""
    yield


@pytest.fixture(params=["thread", "interceptor"])
async def setup(request):
    """Yield a channel to a backend, the backend, and the calls that the channel's observer saw."""
    recorded = RecordedCalls()
    interceptors = [passing] if request.param == "interceptor" else []
    async with (
        Backend.serving() as (backend, address),
        channel(address, observers=[recorded], interceptors=interceptors) as client,
    ):
        yield client, backend, recorded


async def test_all_messages_and_the_trailers(setup):
    """Messages come in order, with the caller's metadata sent and the server's trailing metadata at hand."""
    client, backend, recorded = setup
    backend.release.set()
    messages, trailers = await read_all(client.unary_stream(WATCH), b"a", metadata=(("key", "value"),))
    assert messages == [b"a", b"a"]
    assert isinstance(trailers, grpc.aio.Metadata)
    assert ("key", "value") in backend.metadata
    assert [call.code for call in recorded.calls] == [grpc.StatusCode.OK]


async def test_error_of_the_server(setup):
    """A status comes as grpc.aio raises it: code, details and trailers."""
    client, backend, recorded = setup
    backend.failures, backend.code, backend.trailers = 1, grpc.StatusCode.NOT_FOUND, (("why", "test"),)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(client.unary_stream(ECHO), b"a")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "as the test wants")
    assert dict(caught.value.trailing_metadata())["why"] == "test"
    assert [call.code for call in recorded.calls] == [grpc.StatusCode.NOT_FOUND]


async def test_deadline(setup):
    """A stream that does not end in time fails, whatever it has sent."""
    client, _backend, _recorded = setup
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all(client.unary_stream(WATCH), b"a", timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_cancelled_reader_cancels_the_call(setup):
    """A task that is cancelled while it waits leaves no call behind."""
    client, backend, recorded = setup
    task = asyncio.create_task(read_all(client.unary_stream(WATCH), b"a", timeout=60))
    await backend.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10):
        while recorded.calls[0].code is None:
            await asyncio.sleep(0.01)
    assert [call.code for call in recorded.calls] == [grpc.StatusCode.CANCELLED]


async def test_no_endpoint_and_then_one():
    """Without an endpoint a read fails UNAVAILABLE; on the first one that comes it works."""
    endpoints = FedEndpoints([])
    async with (
        Backend.serving() as (backend, address),
        channel("kubernetes:///a.b:1", endpoints=endpoints, ready_timeout=None) as client,
    ):
        backend.release.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(client.unary_stream(WATCH), b"a")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        endpoints.put([address])
        await client.channel_ready()
        assert (await read_all(client.unary_stream(WATCH), b"a"))[0] == [b"a", b"a"]


async def test_reads_follow_the_endpoints():
    """After a swap of the endpoints a read goes to the new ones, and one underway ends on the old ones."""
    async with Backend.serving() as (first, old), Backend.serving() as (second, new):
        endpoints = FedEndpoints([old])
        async with channel("kubernetes:///a.b:1", endpoints=endpoints) as client:
            underway = asyncio.create_task(read_all(client.unary_stream(WATCH), b"a"))
            await first.entered.wait()
            endpoints.put([new])
            while not second.calls:
                assert (await read_all(client.unary_stream(ECHO), b"b"))[0] == [b"b"]
            first.release.set()
            assert (await underway)[0] == [b"a", b"a"]


async def test_closed_channel_ends_reads():
    """The end of the channel's block cancels what is still read."""
    async with Backend.serving() as (backend, address):
        async with channel(address) as client:
            task = asyncio.create_task(read_all(client.unary_stream(WATCH), b"a", timeout=60))
            await backend.entered.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await task
    assert caught.value.code() is grpc.StatusCode.CANCELLED
