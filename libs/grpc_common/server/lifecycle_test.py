import asyncio
import gc
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2

from grpc_common import StatusError, error_details
from grpc_common.config.loading import load
from grpc_common.config.sections import ServerConfig
from grpc_common.core.calls import Call, CallType, Method
from grpc_common.observe.metrics import UNKNOWN_METHOD
from grpc_common.server.call import ServerCall
from grpc_common.server.engine import new_server
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.server.rpc import Rpc
from grpc_common.testing.server import serving_handlers

METHODS = [("Unary", False, False), ("Gather", True, False), ("Spread", False, True), ("Both", True, True)]
TYPES = {"Unary": "unary", "Gather": "client_stream", "Spread": "server_stream", "Both": "bidi_stream"}
ALL_METHODS = pytest.mark.parametrize("name", list(TYPES))


class Recorder:
    """Observes calls, and lets a test wait for the end of the next one."""

    def __init__(self) -> None:
        self.begun: list[Call] = []
        self.finished: asyncio.Queue[Call] = asyncio.Queue()

    def started(self, call: Call) -> None:
        assert call.code is None
        self.begun.append(call)

    def ended(self, call: Call) -> None:
        assert call in self.begun
        self.finished.put_nowait(call)


class Servicer:
    """A method of each type, which does what the test wants before it answers."""

    def __init__(self, act) -> None:
        self.act = act

    async def unary(self, request, context):
        await self.act(context)
        return request

    async def gather(self, requests, context):
        received = [request async for request in requests]
        await self.act(context)
        return b"".join(received)

    async def spread(self, request, context):
        yield request
        await self.act(context)
        yield request

    async def both(self, requests, context):
        async for request in requests:
            yield request
        await self.act(context)


@asynccontextmanager
async def serving(act, serialization=None, servicer=None, **environ: str):
    """Serve a Servicer as a server does; yield a channel, the recorder and what lives the calls."""
    recorder = Recorder()
    section = load(ServerConfig, environ=environ).server
    lifecycle = Lifecycle(section, observers=[recorder])
    server = new_server(section, lifecycle)
    servicer = (servicer or Servicer)(act)
    handlers = {
        name: getattr(
            grpc,
            f"{'stream' if requests else 'unary'}_{'stream' if responses else 'unary'}_rpc_method_handler",
        )(getattr(servicer, name.lower()), **(serialization or {}))
        for name, requests, responses in METHODS
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Servicer", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, recorder, lifecycle
    await server.stop(None)


def start(channel: grpc.aio.Channel, name: str, **options):
    """Start a call of a method with one message."""
    _, requests, responses = next(method for method in METHODS if method[0] == name)
    shape = f"{'stream' if requests else 'unary'}_{'stream' if responses else 'unary'}"
    request = iter([b"x"]) if requests else b"x"
    return getattr(channel, shape)(f"/test.Servicer/{name}")(request, **options)


async def code_of(call) -> grpc.StatusCode:
    """Read a call to its end and return its code."""
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        if hasattr(call, "read"):
            async for _ in call:
                pass
        else:
            await call
    return await call.code()


async def nothing(_context) -> None:
    """Do nothing before the answer."""


@ALL_METHODS
async def test_observers_see_a_call_from_start_to_end(name):
    """An observer is told of a call with its method, peer, metadata and deadline, and of its code."""
    async with serving(nothing) as (channel, recorder, _):
        call = start(channel, name, timeout=60, metadata=[("k", "v")])
        assert await code_of(call) is grpc.StatusCode.OK
        seen = await recorder.finished.get()
    assert seen.method == Method("test.Servicer", name, CallType(TYPES[name]))
    assert seen.code is grpc.StatusCode.OK
    assert seen.peer.startswith("ipv4:127.0.0.1:")
    assert ("k", "v") in seen.metadata
    assert seen.deadline is not None
    assert 50 < seen.deadline < 60.1
    assert 0 < seen.elapsed < 50


@ALL_METHODS
async def test_status_of_an_error_reaches_client_and_observers(name):
    """A StatusError is the call's status, whichever way the method streams."""

    async def refuse(_context):
        raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, "not now")

    async with serving(refuse) as (channel, recorder, _):
        call = start(channel, name)
        assert await code_of(call) is grpc.StatusCode.FAILED_PRECONDITION
        assert await call.details() == "not now"
        assert (await recorder.finished.get()).code is grpc.StatusCode.FAILED_PRECONDITION


@ALL_METHODS
async def test_abort_and_set_code_are_respected(name):
    """A servicer that uses gRPC's own ways to end a call gets what it asks for."""

    async def abort(context):
        await context.abort(grpc.StatusCode.ABORTED, "aborted")

    async def set_code(context):
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)

    for act, code in ((abort, grpc.StatusCode.ABORTED), (set_code, grpc.StatusCode.OUT_OF_RANGE)):
        async with serving(act) as (channel, recorder, _):
            assert await code_of(start(channel, name)) is code
            assert (await recorder.finished.get()).code is code


@ALL_METHODS
async def test_trailing_metadata_survives_an_error(name):
    """What a servicer has put into the trailers arrives with the error's own details."""

    async def refuse(context):
        context.set_trailing_metadata((("k", "v"),))
        raise StatusError(grpc.StatusCode.ABORTED, "no", error_details_pb2.ErrorInfo(reason="R"))

    async with serving(refuse) as (channel, _, _):
        call = start(channel, name)
        assert await code_of(call) is grpc.StatusCode.ABORTED
        trailers = dict(await call.trailing_metadata())
    assert trailers["k"] == "v"
    assert "grpc-status-details-bin" in trailers


@ALL_METHODS
async def test_client_that_cancels(name):
    """A call that the client gives up stops in the servicer, and counts as CANCELLED."""
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_context):
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving(wait) as (channel, recorder, lifecycle):
        call = start(channel, name)
        reading = asyncio.ensure_future(code_of(call))
        await entered.wait()
        call.cancel()
        await cancelled.wait()
        assert (await recorder.finished.get()).code is grpc.StatusCode.CANCELLED
        assert await reading is grpc.StatusCode.CANCELLED
        while lifecycle.admission.in_flight:
            await asyncio.sleep(0.001)


async def test_client_that_cancels_while_requests_are_awaited():
    """A call that ends while the servicer waits for the next request is CANCELLED, not OK."""

    async def requests():
        yield b"x"
        await asyncio.Event().wait()

    codes = Counter()
    async with serving(nothing) as (channel, recorder, _):
        for _ in range(50):
            call = channel.stream_stream("/test.Servicer/Both")(requests())
            assert await call.read() == b"x"
            call.cancel()
            codes[(await recorder.finished.get()).code] += 1
    # gRPC tells of both ends alike, and of the cancellation a moment later: too late, if the machine is busy.
    assert codes[grpc.StatusCode.CANCELLED] >= 48, codes


@ALL_METHODS
async def test_clients_deadline_is_kept(name):
    """When the client's deadline is over the servicer stops, and observers see DEADLINE_EXCEEDED."""
    entered = asyncio.Event()

    async def wait(_context):
        entered.set()
        await asyncio.Event().wait()

    async with serving(wait) as (channel, recorder, _):
        while not entered.is_set():  # on a busy machine a call may be over before it comes to the servicer
            assert await code_of(start(channel, name, timeout=0.1)) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await recorder.finished.get()).code is grpc.StatusCode.DEADLINE_EXCEEDED


@ALL_METHODS
async def test_default_deadline(name):
    """A call without a deadline gets the server's own, which its error names."""

    async def wait(_context):
        await asyncio.Event().wait()

    variable = "DEFAULT_DEADLINE" if name == "Unary" else "DEFAULT_STREAM_DEADLINE"
    async with serving(wait, **{variable: "50ms"}) as (channel, recorder, _):
        call = start(channel, name)
        assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "longer than 50ms" in await call.details()
        assert (await recorder.finished.get()).code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_servicers_own_timeout_is_not_the_callers():
    """A TimeoutError in a servicer is a bug like any other, not the call's deadline."""

    async def time_out(_context):
        raise TimeoutError

    with structlog.testing.capture_logs():
        async with serving(time_out) as (channel, _, _):
            assert await code_of(start(channel, "Unary")) is grpc.StatusCode.INTERNAL


async def test_full_server_refuses_at_once():
    """Over the bound a call is RESOURCE_EXHAUSTED with a time to come back; then there is room again."""
    opened, entered = asyncio.Event(), asyncio.Event()

    async def wait(_context):
        entered.set()
        await opened.wait()

    async with serving(wait, MAX_CONCURRENT_CALLS="1") as (channel, recorder, _):
        first = asyncio.ensure_future(code_of(start(channel, "Unary")))
        await entered.wait()
        refused = start(channel, "Unary")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(await refused.trailing_metadata())["grpc-retry-pushback-ms"] == "500"
        (retry,) = error_details(caught.value)
        assert retry.retry_delay.ToMilliseconds() == 500
        assert (await recorder.finished.get()).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        opened.set()
        assert await first is grpc.StatusCode.OK
        assert await code_of(start(channel, "Unary")) is grpc.StatusCode.OK


async def test_unknown_methods_are_one():
    """Calls of methods that do not exist are UNIMPLEMENTED, and one method to the observers."""
    async with serving(nothing) as (channel, recorder, _):
        for path in ("/test.Servicer/None", "/no.Service/A", "/no.Service/B"):
            assert await channel.unary_unary(path)(b"").code() is grpc.StatusCode.UNIMPLEMENTED
            seen = await recorder.finished.get()
            assert (seen.method, seen.code) == (UNKNOWN_METHOD, grpc.StatusCode.UNIMPLEMENTED)


async def test_method_that_a_servicer_leaves_out():
    """A generated method that was not overridden is UNIMPLEMENTED, not a bug of the server."""

    async def left_out(context):
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        raise NotImplementedError("Method not implemented!")

    async with serving(left_out) as (channel, _, _):
        call = start(channel, "Unary")
        assert await code_of(call) is grpc.StatusCode.UNIMPLEMENTED
        assert await call.details() == "the server does not implement /test.Servicer/Unary"


def refuse_to_parse(_message: bytes):
    """Be a deserializer of messages that are never right."""
    raise ValueError("secret of the parser")


def refuse_to_serialize(_message) -> bytes:
    """Be a serializer of messages that are never right."""
    raise TypeError("secret of the serializer")


@ALL_METHODS
async def test_request_that_cannot_be_parsed(name):
    """A malformed request is INTERNAL, seen by observers, with no word of Python and no traceback."""
    with structlog.testing.capture_logs() as logs:
        async with serving(nothing, {"request_deserializer": refuse_to_parse}) as (channel, recorder, _):
            call = start(channel, name)
            assert await code_of(call) is grpc.StatusCode.INTERNAL
            assert await call.details() == f"the request of /test.Servicer/{name} can't be parsed"
            assert (await recorder.finished.get()).code is grpc.StatusCode.INTERNAL
    assert not logs


@ALL_METHODS
async def test_response_that_cannot_be_serialized(name):
    """A servicer that returns what is no message has a bug like any other."""
    with structlog.testing.capture_logs() as logs:
        async with serving(nothing, {"response_serializer": refuse_to_serialize}) as (channel, recorder, _):
            call = start(channel, name)
            assert await code_of(call) is grpc.StatusCode.INTERNAL
            assert (await call.details()).startswith("internal error ")
            assert (await recorder.finished.get()).code is grpc.StatusCode.INTERNAL
    assert [line["event"] for line in logs] == ["unexpected exception"]


@ALL_METHODS
async def test_response_that_is_too_large(name):
    """A response over max_send_msg_size is RESOURCE_EXHAUSTED to the client and to the observers."""
    async with serving(nothing, MAX_SEND_MSG_SIZE="1") as (channel, recorder, _):
        shape = "stream" if name in {"Gather", "Both"} else "unary"
        request = iter([b"xx"]) if shape == "stream" else b"xx"
        kind = f"{shape}_{'stream' if name in {'Spread', 'Both'} else 'unary'}"
        call = getattr(channel, kind)(f"/test.Servicer/{name}")(request)
        assert await code_of(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call.details() == "the response is larger than max_send_msg_size (2 vs. 1 bytes)"
        assert (await recorder.finished.get()).code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_code_without_a_response():
    """A servicer that sets a code may return None: there is no response to send."""

    class Refuses(Servicer):
        async def unary(self, _request, context):
            context.set_code(grpc.StatusCode.OUT_OF_RANGE)

    async with serving(nothing, servicer=Refuses) as (channel, _, _):
        assert await code_of(start(channel, "Unary")) is grpc.StatusCode.OUT_OF_RANGE


@contextmanager
def collecting():
    """Yield a list that at the end has what only the garbage collector could free."""
    garbage = []
    gc.collect()
    gc.disable()
    try:
        yield garbage
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage += gc.garbage
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()


@pytest.mark.parametrize("method", ["Echo", "Flow", "Abort"])
async def test_calls_leave_nothing_to_the_garbage_collector(method):
    """What belongs to a call is freed at its end, if no exception holds it: collecting would cost a fifth."""

    async def flow(_request, _context):
        yield b"1"
        yield b"2"

    async def abort(_request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no user")

    handlers = {
        "Flow": grpc.unary_stream_rpc_method_handler(flow),
        "Abort": grpc.unary_unary_rpc_method_handler(abort),
    }
    async with serving_handlers(handlers) as channel:
        with collecting() as garbage:
            for _ in range(5):
                with suppress(grpc.aio.AioRpcError):
                    async for _message in channel.unary_stream(f"/test.Methods/{method}")(b"x"):
                        pass
            await asyncio.sleep(0.1)  # for 50 ms the queue holds a call whose message may come late
            await channel.unary_unary("/test.Methods/Echo")(b"until their ends are seen")
    # grpc.aio's own exceptions hold the Rpc of a call that was aborted, but not the call.
    kinds = (ServerCall,) if method == "Abort" else (ServerCall, Rpc)
    assert not [each for each in garbage if isinstance(each, kinds)]
