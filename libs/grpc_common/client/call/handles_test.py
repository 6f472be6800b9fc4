import asyncio
import gc
import threading

import grpc
import pytest

from grpc_common.client.call.errors import end_of
from grpc_common.client.channel import ChannelConfig, channel
from grpc_common.client.service_config import ServiceConfig
from grpc_common.core.calls import Call
from grpc_common.testing.backends import Backend
from grpc_common.testing.odd_server import OddCall, OddServer

ECHO, WATCH, COLLECT, CHAT, UNKNOWN = (
    f"/test.Backend/{name}" for name in ("Echo", "Watch", "Collect", "Chat", "Unknown")
)
NO_HEALTH = ChannelConfig(service=ServiceConfig(health_check_service=None))
CANCELLED = grpc.StatusCode.CANCELLED


async def test_write_on_a_failed_call_raises_its_status():
    """It says why there is nobody to write to."""
    async with Backend.serving() as (_backend, address), channel(address, observers=[]) as client:
        call = client.stream_stream(UNKNOWN)()
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await call.write(b"a")
        await call.done_writing()


class Told:
    """An observer that knows in which threads calls end, and has their codes."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.codes: list[grpc.StatusCode | None] = []
        self.is_busy = False
        self.ended_call = asyncio.Event()

    def started(self, _call: Call) -> None:
        """Be an observer."""

    def ended(self, call: Call) -> None:
        """Take note."""
        assert not self.is_busy
        self.threads.append(threading.get_ident())
        self.codes.append(call.code)
        self.ended_call.set()


@pytest.mark.parametrize("in_thread", [False, True])
async def test_forgotten_stream_is_cancelled_by_the_event_loop(in_thread):
    """The collector may find it in any thread and under any lock: observers are told later, in the loop."""
    told = Told()
    async with Backend.serving() as (_backend, address), channel(address, observers=[told]) as client:
        call = client.unary_stream(WATCH)(b"a")
        await call.read()
        cycle = [call]
        cycle.append(cycle)
        told.is_busy = not in_thread
        del call, cycle
        await asyncio.to_thread(gc.collect) if in_thread else gc.collect()
        told.is_busy = False
        await asyncio.wait_for(told.ended_call.wait(), 20)
    assert told.threads == [threading.get_ident()]
    assert told.codes == [CANCELLED]


async def test_callback_of_a_forgotten_call_gets_a_call():
    """Whoever keeps no call may ask the callback's for its code."""
    codes: asyncio.Queue[grpc.StatusCode] = asyncio.Queue()

    async def tell(call: grpc.aio.Call) -> None:
        codes.put_nowait(await call.code())

    async with Backend.serving() as (_backend, address), channel(address, observers=[]) as client:
        client.unary_unary(ECHO)(b"a").add_done_callback(lambda call: asyncio.ensure_future(tell(call)))
        client.unary_stream(WATCH)(b"a").add_done_callback(lambda call: asyncio.ensure_future(tell(call)))
        gc.collect()
        ended = [await asyncio.wait_for(codes.get(), 20) for _ in range(2)]
    assert sorted(ended, key=str) == [CANCELLED, grpc.StatusCode.OK]


async def test_callback_that_raises_changes_no_call():
    """The event loop's handler gets its error; the call, other callbacks and observers see nothing."""
    told, later, handled = Told(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: handled.append(context))
    async with Backend.serving() as (_backend, address), channel(address, observers=[told]) as client:
        call = client.unary_unary(ECHO)(b"a")
        call.add_done_callback(lambda _call: 1 / 0)
        call.add_done_callback(later.append)
        assert await call == b"a"
        await asyncio.sleep(0)
        assert later == [call]
        assert [type(each["exception"]) for each in handled] == [ZeroDivisionError]
    assert told.codes == [grpc.StatusCode.OK]


@pytest.mark.parametrize("is_late", [False, True])
async def test_stream_is_not_repeated_once_its_caller_has_a_message(is_late):
    """A caller who has seen the first message gets the others of the same attempt, and its error."""

    async def answer(call: OddCall) -> None:
        call.headers()
        call.message(b"1")
        call.message(b"2")
        call.status(14)

    service = ServiceConfig(health_check_service=None, retryable_methods=("test.Backend/Watch",))
    async with (
        OddServer.serving(answer) as server,
        channel(server.address, config=ChannelConfig(service=service), observers=[]) as client,
    ):
        call = client.unary_stream(WATCH)(b"a")
        if is_late:
            await call.initial_metadata()
        messages = []
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            async for message in call:
                messages.append(message)  # noqa: PERF401 (those before the error count)
        assert messages == [b"1", b"2"]
        assert server.calls == 1


async def test_stream_that_breaks_while_it_is_written_has_the_servers_status():
    """grpc.aio makes INTERNAL of it each second time."""

    async def refuse(call: OddCall) -> None:
        call.headers()
        call.status(14, "not now")

    async with (
        OddServer.serving(refuse) as server,
        channel(server.address, config=NO_HEALTH, observers=[]) as client,
    ):
        for _ in range(30):
            for call in client.stream_stream(CHAT)([b"a"] * 3), client.stream_unary(COLLECT)([b"a"] * 3):
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
                assert await call.details() == "not now"
                assert await call.debug_error_string() == "UNAVAILABLE:not now"


async def test_end_of_a_call_is_its_own_status_if_no_other_comes():
    """A server that says itself "Internal error from Core" is believed in the end."""

    async def answer(call: OddCall) -> None:
        call.status(13, "Internal error from Core")

    async with (
        OddServer.serving(answer) as server,
        grpc.aio.insecure_channel(server.address) as client,
    ):
        error = await asyncio.wait_for(end_of(client.unary_stream(WATCH)(b"a")), 20)
    assert error is not None
    assert error.code() is grpc.StatusCode.INTERNAL
