import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from grpc_common.client.channel import channel
from grpc_common.core.sockets import connections
from grpc_common.testing.backends import NOT_SERVING, SERVING, Backend, FedEndpoints

TARGET = "kubernetes:///backend.test:50051"
ECHO, HOLD, WATCH, CHAT = (f"/test.Backend/{name}" for name in ("Echo", "Hold", "Watch", "Chat"))


@asynccontextmanager
async def backends(count: int):
    """Serve `count` backends; yield them and their addresses."""
    async with AsyncExitStack() as stack:
        yield tuple(
            zip(*[await stack.enter_async_context(Backend.serving()) for _ in range(count)], strict=True)
        )


class Load:
    """Calls without a pause from several tasks, and keeps what failed."""

    def __init__(self, to: grpc.aio.Channel, tasks: int = 4) -> None:
        self._echo = to.unary_unary(ECHO)
        self._stop = False
        self._tasks = tasks
        self.calls = 0
        self.failures: list[grpc.aio.AioRpcError] = []

    async def __aenter__(self):
        self._running = [asyncio.create_task(self._run()) for _ in range(self._tasks)]
        return self

    async def __aexit__(self, *_error):
        self._stop = True
        await asyncio.gather(*self._running)

    async def _run(self):
        while not self._stop:
            self.calls += 1
            try:
                await self._echo(b"")
            except grpc.aio.AioRpcError as error:
                self.failures.append(error)


async def until(condition) -> float:
    """Wait until `condition()` holds while others run; return the seconds that it took."""
    start = time.perf_counter()
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)  # lets the load run
    return time.perf_counter() - start


async def quiet(server: Backend) -> None:
    """Wait until `server` gets no call for 50 ms."""
    before = -1
    async with asyncio.timeout(20):
        while before != server.calls:
            before = server.calls
            await asyncio.sleep(0.05)


async def test_endpoint_added_and_removed_fifty_times_under_load():
    """No call fails, an added endpoint has traffic within a second, and a removed one soon has none."""
    async with backends(4) as (servers, addresses):
        source = FedEndpoints(addresses[:3])
        waits = []
        async with channel(TARGET, endpoints=source) as client, Load(client) as load:
            for _ in range(50):
                before = servers[3].calls
                source.put(addresses)
                waits.append(await until(lambda: servers[3].calls > before))  # noqa: B023 (awaited at once)
                source.put(addresses[:3])
                await quiet(servers[3])
    assert load.failures == []
    assert sorted(waits)[-3] < 1  # but for two times in which the machine may have stood still


async def test_traffic_moves_when_all_endpoints_are_replaced():
    """From a set to one that has no endpoint in common with it, under load, no call fails."""
    async with backends(2) as (servers, addresses):
        source = FedEndpoints(addresses[:1])
        async with channel(TARGET, endpoints=source) as client, Load(client) as load:
            for turn in range(20):
                source.put([addresses[turn % 2 - 1]])
                before = servers[turn % 2 - 1].calls
                await until(lambda: servers[turn % 2 - 1].calls > before)  # noqa: B023 (awaited at once)
    assert load.failures == []


async def test_removed_endpoint_gets_no_call_though_no_other_is_ready():
    """Calls wait for the endpoints that have come, and fail if these are not healthy, as with grpc-go."""
    async with backends(2) as (servers, addresses):
        source = FedEndpoints(addresses[:1])
        async with channel(TARGET, endpoints=source) as client:
            echo = client.unary_unary(ECHO)
            await servers[1].health.set("", NOT_SERVING)
            source.put(addresses[1:])
            await servers[1].health.asked.wait()
            with pytest.raises(grpc.aio.AioRpcError, match="backend unhealthy"):
                await echo(b"")
            waiting = echo(b"", wait_for_ready=True)
            await servers[1].health.set("", SERVING)
            await waiting
        assert [server.calls for server in servers] == [0, 1]


async def test_calls_are_spread_evenly():
    """Each of four endpoints gets a quarter of the calls."""
    async with (
        backends(4) as (servers, addresses),
        channel(TARGET, endpoints=FedEndpoints(addresses)) as client,
    ):
        echo = client.unary_unary(ECHO)
        async with Load(client):
            await until(lambda: all(server.calls for server in servers))
        for server in servers:
            server.calls = 0
        for _ in range(400):
            await echo(b"")
    assert [server.calls for server in servers] == [100] * 4


@pytest.mark.parametrize("method", [HOLD, WATCH, CHAT])
async def test_call_in_flight_survives_the_removal_of_its_endpoint(method):
    """A call stays on its endpoint, though that has been removed, until it ends by itself."""
    async with backends(2) as (servers, addresses):
        source = FedEndpoints(addresses[:1])
        async with channel(TARGET, endpoints=source) as client:
            call = IN_FLIGHT[method](client)
            await servers[0].entered.wait()
            source.put(addresses[1:])
            await servers[1].health.asked.wait()
            await client.unary_unary(ECHO)(b"")
            assert [server.calls for server in servers] == [1, 1]
            servers[0].release.set()
            assert await finish(call) == grpc.StatusCode.OK
            del call  # C-core keeps a connection for as long as a call on it is held
            port = int(addresses[0].rpartition(":")[2])
            await until(lambda: not connections(port))


IN_FLIGHT = {
    HOLD: lambda client: client.unary_unary(HOLD)(b"a"),
    WATCH: lambda client: client.unary_stream(WATCH)(b"a"),
    CHAT: lambda client: client.stream_stream(CHAT)(),
}


async def finish(call) -> grpc.StatusCode:
    """Use `call` to its end and return its code."""
    if isinstance(call, grpc.aio.StreamStreamCall):
        await call.write(b"a")
        assert await call.read() == b"a"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    elif isinstance(call, grpc.aio.UnaryStreamCall):
        assert [response async for response in call] == [b"a", b"a"]
    else:
        assert await call == b"a"
    return await call.code()


async def test_no_endpoint_is_unavailable_at_once():
    """Without an endpoint a call fails, says why, and the next set of endpoints serves again."""
    async with backends(1) as (_servers, addresses):
        source = FedEndpoints(addresses)
        async with channel(TARGET, endpoints=source) as client:
            source.put([])
            await until(lambda: client.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.unary_unary(ECHO)(b"")
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == f"{TARGET} has no endpoint that is ready"
            with pytest.raises(grpc.aio.AioRpcError):
                [_ async for _ in client.stream_stream(CHAT)(iter([b"a"]))]
            source.put(addresses)
            await until(lambda: client.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE)
            assert await client.unary_unary(ECHO)(b"a") == b"a"


@pytest.mark.parametrize("endpoints", [[], ["127.0.0.1:1"]])
async def test_wait_for_ready_waits_for_endpoints_to_come(endpoints):
    """A call of each kind that waits starts on the endpoints that come later, with all of its arguments."""
    async with backends(1) as (servers, addresses):
        source = FedEndpoints(endpoints)
        async with channel(TARGET, endpoints=source, ready_timeout=None) as client:
            await until(lambda: client.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE)
            options = {"wait_for_ready": True, "metadata": (("key", "value"),)}
            unary = client.unary_unary(ECHO)(b"a", **options)
            collect = client.stream_unary("/test.Backend/Collect")(iter([b"a", b"b"]), **options)
            watch = client.unary_stream(WATCH)(b"a", **options)
            chat = client.stream_stream(CHAT)(**options)
            servers[0].release.set()
            source.put(addresses)
            assert await unary == b"a"
            assert await collect == b"ab"
            assert await finish(watch) == grpc.StatusCode.OK
            assert await finish(chat) == grpc.StatusCode.OK
            assert ("key", "value") in servers[0].metadata


async def test_wait_for_ready_ends_with_the_deadline():
    """A call that waits in vain ends at its deadline, and says what it waited for."""
    async with channel(TARGET, endpoints=FedEndpoints([]), ready_timeout=None) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.unary_unary(ECHO)(b"", timeout=0.1, wait_for_ready=True)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.details() == f"{TARGET} was not ready within 0.1 s"


async def test_call_before_the_first_endpoints_waits_for_them():
    """Without wait_for_ready, too: endpoints that are not known yet are no reason to fail."""
    async with backends(1) as (_servers, addresses):
        source = FedEndpoints()
        async with channel(TARGET, endpoints=source, ready_timeout=None) as client:
            call = client.unary_unary(ECHO)(b"a")
            source.put(addresses)
            assert await call == b"a"


async def test_waiting_call_can_be_cancelled():
    """Cancelling a call that waits ends it at once."""
    async with channel(TARGET, endpoints=FedEndpoints([]), ready_timeout=None) as client:
        call = client.unary_unary(ECHO)(b"", wait_for_ready=True)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await call.code() == grpc.StatusCode.CANCELLED


async def test_call_on_a_closed_channel_is_cancelled():
    """After the block there is no channel to call on, and a call that waits ends."""
    async with channel(TARGET, endpoints=FedEndpoints([]), ready_timeout=None) as client:
        echo = client.unary_unary(ECHO)
        waiting = echo(b"", wait_for_ready=True)
        await asyncio.sleep(0)
    for call in (waiting, echo(b"")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.CANCELLED
        assert caught.value.details() == f"the channel to {TARGET} is closed"


async def test_end_of_the_block_ends_calls_on_every_endpoint():
    """A call on endpoints that were removed is cancelled like one on the present ones."""
    async with backends(2) as (servers, addresses):
        source = FedEndpoints(addresses[:1])
        async with channel(TARGET, endpoints=source) as client:
            first = client.unary_unary(HOLD)(b"")
            await servers[0].entered.wait()
            source.put(addresses[1:])
            await servers[1].health.asked.wait()
            second = client.unary_unary(HOLD)(b"")
            await servers[1].entered.wait()
        assert (await first.code(), await second.code()) == (grpc.StatusCode.CANCELLED,) * 2


async def test_failed_source_keeps_the_last_endpoints(monkeypatch):
    """An error of the source changes nothing; the source is asked again, and then followed again."""
    monkeypatch.setattr("grpc_common.client.following._SOURCE_INTERVAL", 0.01)
    async with backends(2) as (servers, addresses):
        source = FedEndpoints(addresses[:1])
        async with channel(TARGET, endpoints=source) as client, Load(client) as load:
            source.put(OSError("the API server is gone"))
            source.put(addresses)
            await until(lambda: servers[1].calls > 0)
    assert load.failures == []
