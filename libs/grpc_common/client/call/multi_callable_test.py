import asyncio
import gc

import grpc
import prometheus_client
import pytest

from grpc_common.client.channel import ChannelConfig, channel
from grpc_common.core.calls import Call, CallType
from grpc_common.observe.metrics import client_metrics
from grpc_common.testing.backends import Backend, FedEndpoints

OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED


def path(name: str) -> str:
    """Return the path of a method of test.Backend."""
    return f"/test.Backend/{name}"


class Recorder:
    """An observer that keeps what it is told, and adds to the metadata."""

    def __init__(self) -> None:
        self.running: list[Call] = []
        self.calls: list[Call] = []
        self.all_ended = asyncio.Event()

    def started(self, call: Call) -> None:
        assert call.code is None
        call.metadata.append(("traceparent", "00-1-1-01"))
        self.running.append(call)

    def ended(self, call: Call) -> None:
        self.running.remove(call)
        self.calls.append(call)
        if not self.running:
            self.all_ended.set()

    def codes(self) -> list[grpc.StatusCode | None]:
        assert not self.running
        return [call.code for call in self.calls]


@pytest.fixture
async def setup():
    """Yield a channel to a backend, the backend, and an observer of the channel."""
    recorder = Recorder()
    async with (
        Backend.serving() as (backend, address),
        channel(address, observers=[recorder]) as client,
    ):
        yield client, backend, recorder


async def test_observer_sees_calls_of_every_type(setup):
    """A call that ends well is told once at its start and once at its end, with its method and type."""
    client, backend, recorder = setup
    backend.release.set()
    await client.unary_unary(path("Echo"))(b"a")
    assert [_ async for _ in client.unary_stream(path("Watch"))(b"a")] == [b"a", b"a"]
    assert await client.stream_unary(path("Collect"))(iter([b"a", b"b"])) == b"ab"
    assert [_ async for _ in client.stream_stream(path("Chat"))(iter([b"a", b"b"]))] == [b"a", b"b"]
    assert recorder.codes() == [OK] * 4
    assert [call.method.type for call in recorder.calls] == [
        CallType.UNARY,
        CallType.SERVER_STREAM,
        CallType.CLIENT_STREAM,
        CallType.BIDI_STREAM,
    ]
    first = recorder.calls[0]
    assert (first.method.service, first.method.name) == ("test.Backend", "Echo")
    assert first.peer.startswith("127.0.0.1:")


async def test_observer_adds_metadata(setup):
    """What an observer appends is sent beside what the caller sends."""
    client, backend, _recorder = setup
    await client.unary_unary(path("Echo"))(b"", metadata=grpc.aio.Metadata(("key", "value")))
    assert {("key", "value"), ("traceparent", "00-1-1-01")} < set(backend.metadata)


async def test_observer_sees_the_code_of_a_failed_call(setup):
    """A status of the server, an unknown method, and a deadline end calls with their codes."""
    client, backend, recorder = setup
    backend.failures, backend.code = 1, grpc.StatusCode.NOT_FOUND
    for name, timeout in ("Echo", 5), ("Unknown", 5), ("Hold", 0.05):
        with pytest.raises(grpc.aio.AioRpcError):
            await client.unary_unary(path(name))(b"", timeout=timeout)
    assert recorder.codes() == [
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ]


@pytest.mark.parametrize("endpoints", [[], ["127.0.0.1:1"]])
async def test_observer_sees_a_call_that_reaches_no_server(endpoints):
    """No endpoint, or none that answers: UNAVAILABLE."""
    recorder = Recorder()
    source = FedEndpoints(endpoints)
    async with channel(
        "kubernetes:///a.b:1", endpoints=source, observers=[recorder], ready_timeout=None
    ) as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await client.unary_unary(path("Echo"))(b"")
    assert recorder.codes() == [grpc.StatusCode.UNAVAILABLE]


async def test_observer_sees_cancellation(setup):
    """A call and a task that are cancelled, and a stream that is left half-way, end CANCELLED."""
    client, backend, recorder = setup
    call = client.unary_unary(path("Hold"))(b"")
    await backend.entered.wait()
    call.cancel()
    assert recorder.codes() == [CANCELLED]

    backend.entered.clear()

    async def hold():
        await client.unary_unary(path("Hold"))(b"")

    task = asyncio.create_task(hold())
    await backend.entered.wait()
    task.cancel()
    await asyncio.wait([task])
    assert recorder.codes() == [CANCELLED] * 2

    stream = client.unary_stream(path("Watch"))(b"")
    assert await stream.read() == b""
    stream.cancel()
    assert recorder.codes() == [CANCELLED] * 3


async def test_observer_sees_the_end_of_a_forgotten_stream(setup):
    """A stream that nobody reads to its end is over at its deadline."""
    client, _backend, recorder = setup
    async for _ in client.unary_stream(path("Watch"))(b"", timeout=0.1):
        break
    gc.collect()
    await asyncio.wait_for(recorder.all_ended.wait(), 20)
    assert recorder.codes()[0] in {CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_observer_sees_the_end_of_the_channel():
    """A call that runs when the channel is closed ends CANCELLED."""
    recorder = Recorder()
    async with Backend.serving() as (backend, address):
        async with channel(address, observers=[recorder]) as client:
            call = client.unary_unary(path("Hold"))(b"")
            await backend.entered.wait()
        assert recorder.codes() == [CANCELLED]
        assert call.cancelled()


async def test_observer_sees_a_call_that_cannot_be_made(setup):
    """Metadata of another type raises its error where it is awaited, and the call has ended."""
    client, _backend, recorder = setup
    with pytest.raises(TypeError, match="int"):
        await client.unary_unary(path("Echo"))(b"", metadata=(("key", 5),))
    assert recorder.codes() == [grpc.StatusCode.INTERNAL]
    with pytest.raises(TypeError, match="unknown"):
        client.unary_unary(path("Echo"))(b"", unknown=1)
    assert recorder.codes() == [grpc.StatusCode.INTERNAL]


async def test_every_call_has_a_deadline():
    """The default of its type, or of its method, which a timeout of the call's own overrules either way."""
    config = ChannelConfig(
        default_deadline=20, default_stream_deadline=200, method_deadlines={"test.Backend/Create": 50}
    )
    recorder = Recorder()
    async with (
        Backend.serving() as (backend, address),
        channel(address, config=config, observers=[recorder]) as client,
    ):
        await client.unary_unary(path("Echo"))(b"")
        assert backend.deadline == pytest.approx(20, abs=4)
        await client.stream_unary(path("Collect"))(iter([]))
        assert backend.deadline == pytest.approx(200, abs=4)
        await client.unary_unary(path("Create"))(b"")
        assert backend.deadline == pytest.approx(50, abs=4)
        await client.unary_unary(path("Create"))(b"", timeout=70)
        assert backend.deadline == pytest.approx(70, abs=4)
        await client.unary_unary(path("Create"))(b"", timeout=7)
        assert backend.deadline == pytest.approx(7, abs=4)
    assert [call.deadline for call in recorder.calls] == [20, 200, 50, 70, 7]


async def test_messages_are_counted():
    """With the metrics of clients as observer each message that is sent or received counts."""

    def count(direction):
        labels = {"grpc_type": "bidi_stream", "grpc_service": "test.Backend", "grpc_method": "Chat"}
        return prometheus_client.REGISTRY.get_sample_value(f"grpc_client_msg_{direction}_total", labels) or 0

    async with (
        Backend.serving() as (_backend, address),
        channel(address, observers=[client_metrics()]) as client,
    ):
        before = count("sent"), count("received")
        assert len([_ async for _ in client.stream_stream(path("Chat"))(iter([b"a", b"b", b"c"]))]) == 3
    assert (count("sent") - before[0], count("received") - before[1]) == (3, 3)


async def test_observer_that_raises_changes_no_call():
    """Whatever an observer does, calls of every type end as without it, and the other observers see them."""

    class Broken:
        def started(self, _call: Call) -> None:
            raise ValueError("at the start")

        def ended(self, _call: Call) -> None:
            raise asyncio.CancelledError

    recorder = Recorder()
    async with (
        Backend.serving() as (backend, address),
        channel(address, observers=[Broken(), recorder]) as client,
    ):
        backend.release.set()
        assert await client.unary_unary(path("Echo"))(b"a") == b"a"
        assert [answer async for answer in client.unary_stream(path("Watch"))(b"b")] == [b"b", b"b"]
        assert await client.stream_unary(path("Collect"))(iter([b"c", b"d"])) == b"cd"
        assert [answer async for answer in client.stream_stream(path("Chat"))(iter([b"e"]))] == [b"e"]
        await recorder.all_ended.wait()
    assert recorder.codes() == [OK] * 4
