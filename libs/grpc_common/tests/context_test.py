"""What the calls that a handler makes inherit of its own, and what it can know of that."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from grpc_common import ChannelConfig, Server, channel, current_call
from grpc_common.testing import configure
from grpc_common.testing.server import serving

DEFAULT = ChannelConfig()

ROUNDED = 1.01
"""gRPC sends timeouts with two or three digits."""


def unary(function):
    """Return the handler of a method of bytes."""
    return grpc.unary_unary_rpc_method_handler(function)


class Backend:
    """A server that a handler calls: it tells what it sees, or holds its calls."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue = asyncio.Queue()
        self.ended: asyncio.Queue = asyncio.Queue()

    async def see(self, request, context):
        self.seen.put_nowait((context.time_remaining(), dict(context.invocation_metadata())))
        return request

    async def hang(self, request, _context):
        self.seen.put_nowait(request)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.put_nowait(request)

    async def hang_streaming(self, request, context):
        yield request
        await self.hang(request, context)


@asynccontextmanager
async def chain(act, config=DEFAULT, **environ):
    """Serve a frontend whose `Front` does `act(channel to the backend)`; yield its method and the backend."""
    backend = Backend()
    backend_methods = {
        "See": unary(backend.see),
        "Hang": unary(backend.hang),
        "HangStreaming": grpc.unary_stream_rpc_method_handler(backend.hang_streaming),
    }
    async with (
        serving(backend_methods) as (backend_port, _),
        channel(f"127.0.0.1:{backend_port}", config=config) as behind,
    ):

        async def front(request, _context):
            return await act(behind) or request

        async with (
            serving({"Front": unary(front)}, **environ) as (port, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as front_channel,
        ):
            yield front_channel.unary_unary("/test.Methods/Front"), backend


def see(behind, **options):
    """Have the backend tell what it sees of a call."""
    return behind.unary_unary("/test.Methods/See")(b"", **options)


async def test_a_call_gets_what_is_left_of_the_callers_deadline():
    """Two seconds of the caller are at most two for the call that its handler makes."""
    async with chain(see) as (front, backend):
        await front(b"", timeout=2)
        assert 0 < (await backend.seen.get())[0] <= 2 * ROUNDED


async def test_time_that_has_passed_is_not_left():
    """What the handler has used up before, its calls don't get."""

    async def late(behind):
        await asyncio.sleep(0.3)
        await see(behind)

    async with chain(late) as (front, backend):
        await front(b"", timeout=5)
        assert (await backend.seen.get())[0] <= 4.7 * ROUNDED


async def test_a_deadline_of_the_servers_is_passed_on():
    """A caller without a deadline has the server's, and so have the calls of the handler."""
    async with chain(see, DEFAULT_DEADLINE="3s") as (front, backend):
        await front(b"")
        assert (await backend.seen.get())[0] <= 3 * ROUNDED


async def test_the_channels_deadline_holds_if_it_is_shorter():
    """The caller's 20 s don't lengthen the 2 s of the channel."""
    async with chain(see, ChannelConfig(default_deadline=2)) as (front, backend):
        await front(b"", timeout=20)
        assert (await backend.seen.get())[0] <= 2 * ROUNDED


async def test_a_timeout_of_its_own_wins():
    """A handler that says how long its call may take is not overruled."""
    async with chain(lambda behind: see(behind, timeout=50)) as (front, backend):
        await front(b"", timeout=5)
        assert 10 < (await backend.seen.get())[0] <= 50 * ROUNDED


async def test_a_deadline_that_is_over_fails_at_once():
    """A handler that goes on after its deadline has no time for calls."""
    codes: asyncio.Queue = asyncio.Queue()
    entered = asyncio.Event()

    async def swallow(behind):
        entered.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        try:
            await see(behind)
        except grpc.aio.AioRpcError as error:
            codes.put_nowait(error.code())
        except asyncio.CancelledError:
            codes.put_nowait(grpc.StatusCode.CANCELLED)

    async with chain(swallow) as (front, _backend):
        while not entered.is_set():  # on a busy machine a call may be over before it has a handler
            with pytest.raises(grpc.aio.AioRpcError):
                await front(b"", timeout=0.3)
        code = await asyncio.wait_for(codes.get(), 10)
        assert code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


async def test_a_call_in_the_background_has_its_own_deadline():
    """What outlives the call is not bound by its deadline, nor cancelled with it."""

    async def leave(behind):
        current_call().run_in_background(see_later(behind))

    async def see_later(behind):
        await asyncio.sleep(0.1)
        await see(behind)

    async with chain(leave) as (front, backend):
        await front(b"", timeout=4)
        assert (await asyncio.wait_for(backend.seen.get(), 10))[0] > 5


@pytest.mark.parametrize("how", ["awaited", "in a task", "streamed"])
@pytest.mark.parametrize("end", ["cancelled", "deadline"])
async def test_cancellation_is_passed_on(how, end):
    """A call that ends before its handler ends the calls that this has made, awaited or not."""
    tasks = []

    async def act(behind):
        if how == "streamed":
            stream = behind.unary_stream("/test.Methods/HangStreaming")(b"1", timeout=60)
            await stream.read()
            tasks.append(stream)
            await asyncio.Event().wait()
        call = behind.unary_unary("/test.Methods/Hang")(b"1", timeout=60)
        if how == "awaited":
            await call
        tasks.append(asyncio.ensure_future(swallow(call)))
        await asyncio.Event().wait()

    async def swallow(call):
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await call

    async with chain(act) as (front, backend):
        if end == "cancelled":
            call = front(b"")
            await backend.seen.get()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            while backend.seen.empty():  # on a busy machine a call may be over before it comes so far
                with pytest.raises(grpc.aio.AioRpcError):
                    await front(b"", timeout=0.5)
        assert await asyncio.wait_for(backend.ended.get(), 10) == b"1"


async def test_chosen_metadata_is_passed_on():
    """The request's id goes on to the next server, the authorization does not."""
    async with chain(see, PROPAGATED_METADATA="x-request-id,tenant-bin") as (front, backend):
        sent = (("x-request-id", "r1"), ("authorization", "Bearer secret"), ("tenant-bin", b"\0\xff"))
        await front(b"", metadata=sent)
        _, metadata = await backend.seen.get()
        assert metadata["x-request-id"] == "r1"
        assert metadata["tenant-bin"] == b"\0\xff"
        assert "authorization" not in metadata


async def test_the_handlers_own_metadata_wins():
    """A request id that the handler gives is not sent twice."""
    own = (("x-request-id", "mine"),)
    async with chain(lambda behind: see(behind, metadata=own), PROPAGATED_METADATA="x-request-id") as (
        front,
        backend,
    ):
        await front(b"", metadata=(("x-request-id", "r1"),))
        assert (await backend.seen.get())[1]["x-request-id"] == "mine"


async def test_nothing_is_passed_on_unless_chosen():
    """Without the setting a caller's metadata stays here."""
    async with chain(see) as (front, backend):
        await front(b"", metadata=(("x-request-id", "r1"),))
        assert "x-request-id" not in (await backend.seen.get())[1]


async def test_the_current_call():
    """A handler, its tasks and its threads know the call: method, peer, metadata, what time is left."""
    found = []

    async def in_a_task():
        return current_call()

    async def act(_behind):
        found.append(current_call())
        found.append(await asyncio.create_task(in_a_task()))
        found.append(await asyncio.to_thread(current_call))
        await asyncio.sleep(0.05)
        found.append(current_call().time_remaining())

    async with chain(act) as (front, _):
        await front(b"", timeout=9, metadata=(("k", "v"),))
    call, in_task, in_thread, left = found
    assert call is in_task is in_thread
    assert (call.method.path, call.method.name) == ("/test.Methods/Front", "Front")
    assert ("k", "v") in call.metadata
    assert call.peer.startswith("ipv4:127.0.0.1:")
    assert 5 < left < 8.96 * ROUNDED


async def test_the_current_call_of_a_plain_function():
    """A function in a thread knows it too."""
    found = []

    def front(request, _context):
        found.append((current_call().method.name, threading.current_thread() is threading.main_thread()))
        return request

    async with (
        serving({"Front": unary(front)}) as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as front_channel,
    ):
        await front_channel.unary_unary("/test.Methods/Front")(b"")
    assert found == [("Front", False)]


async def test_outside_of_a_call():
    """Elsewhere there is none, and the error says where there is."""
    with pytest.raises(LookupError, match="handler"):
        current_call()


async def test_logs_of_a_handler_name_the_call():
    """Whatever logger a handler uses, the line has the call's method and peer."""
    from grpc_common.observe.logs import _add_call  # noqa: PLC0415

    events = []

    async def act(_behind):
        events.append(_add_call(structlog.get_logger(), "info", {}))

    with capture_logs():
        async with chain(act) as (front, _):
            await front(b"")
    assert events[0]["method"] == "/test.Methods/Front"


async def test_background_work_outlives_its_call_and_the_drain_waits_for_it():
    """Work that is left behind by a coroutine or a thread is done before the server has ended."""
    done, may_end = [], asyncio.Event()

    async def work(name):
        await may_end.wait()
        done.append(name)

    async def front(request, _context):
        current_call().run_in_background(work("coroutine"))
        return request

    def plain(request, _context):
        current_call().run_in_background(work("thread"))
        return request

    async with (
        serving({"Front": unary(front), "Plain": unary(plain)}, DRAIN_GRACE="20s") as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as front_channel,
    ):
        await front_channel.unary_unary("/test.Methods/Front")(b"")
        await front_channel.unary_unary("/test.Methods/Plain")(b"")
        assert done == []
        asyncio.get_running_loop().call_later(0.3, may_end.set)  # while the server drains
    assert sorted(done) == ["coroutine", "thread"]


async def test_background_work_that_outlasts_the_grace_is_cancelled_and_named():
    """The server ends within its grace, and the log says what it has cut off."""
    ended = asyncio.Event()

    async def endless():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def front(request, _context):
        current_call().run_in_background(endless())
        return request

    start = time.monotonic()
    with capture_logs() as logs:
        async with (
            serving({"Front": unary(front)}, DRAIN_GRACE="200ms") as (port, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as front_channel,
        ):
            await front_channel.unary_unary("/test.Methods/Front")(b"")
    assert time.monotonic() - start < 20
    (line,) = [line for line in logs if "outlast" in line["event"]]
    assert "endless" in line["background_tasks"][0]
    await asyncio.wait_for(ended.wait(), 5)


async def test_drain_without_a_grace_that_cuts_off_nothing_is_silent():
    """A grace that is too short to make sure is no reason to say that calls were cancelled."""
    with capture_logs() as logs:
        async with (
            serving(DRAIN_GRACE="0s") as (port, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            await channel.unary_unary("/test.Methods/Echo")(b"")
            async with asyncio.timeout(20):  # its client may hear of a call's end first
                while "call" not in [line["event"] for line in logs]:
                    await asyncio.sleep(0.01)
    warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert not [event for event in warnings if not event.startswith("event loop")]  # on a busy machine


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), grpc.aio.AbortError()])
async def test_background_work_that_fails_is_logged(error):
    """An exception that nobody awaits is in the log, and the server goes on."""

    async def fail():
        raise error

    async def front(request, _context):
        current_call().run_in_background(fail())
        return request

    with capture_logs() as logs:
        async with (
            serving({"Front": unary(front)}) as (port, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as front_channel,
        ):
            for _ in range(2):
                await front_channel.unary_unary("/test.Methods/Front")(b"")
    errors = [line["event"] for line in logs if line["log_level"] == "error"]
    # A busy machine may hold up the event loop, which the log tells.
    assert [event for event in errors if event != "event loop blocked"] == ["background task failed"] * 2


async def test_cancelled_background_work_ends_before_resources_close():
    """Work that outlasts the grace has what it needs to clean up, and what comes later is not begun."""
    log, call = [], None

    @asynccontextmanager
    async def pool():
        yield
        log.append("pool closed")
        call.run_in_background(late())
        await asyncio.sleep(0)

    async def late():
        log.append("late")

    async def endless():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            log.append("cleaned up")

    async def front(request, _context):
        nonlocal call
        call = current_call()
        call.run_in_background(endless())
        return request

    methods = grpc.method_handlers_generic_handler("test.Methods", {"Front": unary(front)})
    server = Server(configure(DRAIN_GRACE="200ms"))
    server.add(None, lambda _none, it: it.add_generic_rpc_handlers([methods]))
    server.use(pool())
    with capture_logs() as logs:
        async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as front_channel:
            await front_channel.unary_unary("/test.Methods/Front")(b"")
        await asyncio.sleep(0)
    assert log == ["cleaned up", "pool closed"]
    assert [line["event"] for line in logs].count("background task was cancelled") == 2


async def test_background_work_is_a_coroutine():
    """A function that nobody has called fails where it is given."""
    async with chain(lambda _behind: current_call().run_in_background(see)) as (front, _):
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError):
            await front(b"")
    (line,) = [line for line in logs if line["event"] == "unexpected exception"]
    assert "takes a coroutine" in str(line["exc_info"])
