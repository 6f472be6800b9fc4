"""Interceptors and observers of a team's own, around calls of all four types, on both sides."""

import asyncio
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common import StatusError, channel, current_call
from grpc_common.core.calls import CallType
from grpc_common.testing import configure, serve_on_loopback

TYPES = pytest.mark.parametrize("call_type", list(CallType))
PATH = "/test.Any/Call"


def handler(call_type, act):
    """Return a method of the type, which does `act(context)` between its two answers or before its one."""

    async def one(request, context):
        if hasattr(request, "__aiter__"):
            _ = [each async for each in request]
        await act(context)
        return b"answer"

    async def many(request, context):
        if hasattr(request, "__aiter__"):
            _ = [each async for each in request]
        yield b"answer"
        await act(context)
        yield b"answer"

    streams = call_type in {CallType.SERVER_STREAM, CallType.BIDI_STREAM}
    return getattr(grpc, f"{call_type.shape}_rpc_method_handler")(many if streams else one)


@asynccontextmanager
async def serving(call_type, act, *, client_interceptors=(), environ=(), **options):
    """Serve one method with the options of a Server; yield the channel."""
    generic = grpc.method_handlers_generic_handler("test.Any", {"Call": handler(call_type, act)})
    async with serve_on_loopback(
        None,
        lambda _none, server: server.add_generic_rpc_handlers([generic]),
        config=configure(**{"DRAIN_GRACE": "0s", **dict(environ)}),
        channel=partial(channel, interceptors=client_interceptors),
        **options,
    ) as opened:
        yield opened


async def call(opened, call_type, *, requests=(b"1", b"2"), **options):
    """Make a call of the type and return its answers, of which all types have at least one."""
    multi = getattr(opened, call_type.shape)(PATH)
    made = multi(requests if call_type.shape.startswith("stream") else b"1", **options)
    if call_type in {CallType.UNARY, CallType.CLIENT_STREAM}:
        return [await made]
    return [answer async for answer in made]


async def failure(opened, call_type, **options):
    """Return the error of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(opened, call_type, **options)
    return caught.value


async def refusal(opened, call_type):
    """Return the error of a call that the server ends before it has read anything.

    It sends no message in a stream: where that comes too late, grpc.aio takes INTERNAL for the status.
    """

    async def never():
        await asyncio.Event().wait()
        yield b""

    return await failure(opened, call_type, requests=never())


async def nothing(_context):
    """Do nothing."""


def raising(error):
    """Return an interceptor that lets no call pass."""

    @asynccontextmanager
    async def interceptor(_call):
        raise error
        yield

    return interceptor


def telling(left):
    """Return an interceptor that sets an event when its call is left."""

    @asynccontextmanager
    async def interceptor(_call):
        try:
            yield
        finally:
            left.set()

    return interceptor


def recording(log, name):
    """Return an interceptor that notes what it sees."""

    @asynccontextmanager
    async def interceptor(_call):
        log.append(f"{name} begins")
        try:
            yield
        except BaseException as error:
            log.append(f"{name} sees {type(error).__name__}")
            raise
        log.append(f"{name} ends")

    return interceptor


@TYPES
async def test_interceptors_of_a_server_run_around_the_handler(call_type):
    """The first one is outermost, and the handler runs inside all of them."""
    log = []

    async def act(_context):
        log.append("handler")

    interceptors = [recording(log, "one"), recording(log, "two")]
    async with serving(call_type, act, interceptors=interceptors) as opened:
        await call(opened, call_type)
    assert log == ["one begins", "two begins", "handler", "two ends", "one ends"]


@TYPES
async def test_what_an_interceptor_of_a_server_knows(call_type):
    """It sees method, type, metadata, peer and deadline, and the handler sees the variables that it sets."""
    variable = ContextVar("variable")
    found = {}

    @asynccontextmanager
    async def interceptor(seen):
        found.update(
            method=seen.method,
            metadata=dict(seen.metadata),
            peer=seen.peer,
            is_current=seen is current_call(),
        )
        found["left"] = seen.time_remaining()
        token = variable.set("set")
        yield
        variable.reset(token)

    async def act(_context):
        found["variable"] = variable.get()

    async with serving(call_type, act, interceptors=[interceptor]) as opened:
        await call(opened, call_type, metadata=(("key", "value"),), timeout=9)
    assert (found["method"].path, found["method"].type) == (PATH, call_type)
    assert found["metadata"]["key"] == "value"
    assert found["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < found["left"] < 9.5
    assert found["variable"] == "set"
    assert found["is_current"]


@TYPES
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StatusError(grpc.StatusCode.PERMISSION_DENIED, "not you"), grpc.StatusCode.PERMISSION_DENIED),
        (ValueError("secret"), grpc.StatusCode.INTERNAL),
        (SystemExit(1), grpc.StatusCode.INTERNAL),
    ],
)
async def test_an_interceptor_of_a_server_that_raises_ends_the_call(call_type, error, code):
    """What it raises is a status, as if the handler had raised it, and the handler does not run."""
    log = []

    async def act(_context):
        log.append("handler")

    async with serving(call_type, act, interceptors=[recording(log, "outer"), raising(error)]) as opened:
        failed = await refusal(opened, call_type)
    assert failed.code() is code
    assert "secret" not in failed.details()
    assert log == ["outer begins", f"outer sees {type(error).__name__}"]


async def abort(context):
    """Abort."""
    await context.abort(grpc.StatusCode.NOT_FOUND, "gone")


async def raise_status(_context):
    """Raise a StatusError."""
    raise StatusError(grpc.StatusCode.NOT_FOUND, "gone")


async def set_code(context):
    """Set a code, and return."""
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("gone")


@TYPES
@pytest.mark.parametrize("act", [abort, raise_status, set_code])
async def test_an_interceptor_of_a_server_sees_the_status(call_type, act):
    """However a handler says its status, it comes out of the yield as a StatusError."""
    seen = []

    @asynccontextmanager
    async def interceptor(_call):
        try:
            yield
        except StatusError as error:
            seen.append((error.code, error.message))
            raise

    async with serving(call_type, act, interceptors=[interceptor]) as opened:
        failed = await failure(opened, call_type)
    assert seen == [(grpc.StatusCode.NOT_FOUND, "gone")]
    assert (failed.code(), failed.details()) == (grpc.StatusCode.NOT_FOUND, "gone")


@TYPES
async def test_an_interceptor_of_a_server_may_answer_with_another_status(call_type):
    """An exception of the team's becomes a status of its choice."""

    @asynccontextmanager
    async def interceptor(_call):
        try:
            yield
        except KeyError as error:
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, "no such key") from error

    async def act(_context):
        raise KeyError("internal")

    async with serving(call_type, act, interceptors=[interceptor]) as opened:
        failed = await failure(opened, call_type)
    assert (failed.code(), failed.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "no such key")


@TYPES
@pytest.mark.parametrize("act", [raise_status, abort, set_code])
async def test_an_interceptor_can_not_make_a_failure_a_success(call_type, act):
    """What suppresses the handler's exception leaves its status as it is: there is no answer to send."""

    @asynccontextmanager
    async def interceptor(_call):
        with suppress(StatusError):
            yield

    async with serving(call_type, act, interceptors=[interceptor]) as opened:
        assert (await failure(opened, call_type)).code() is grpc.StatusCode.NOT_FOUND


@TYPES
async def test_interceptors_come_after_admission(call_type):
    """A call that is refused for want of room does not reach them."""
    entered, release, log = asyncio.Event(), asyncio.Event(), []

    async def act(_context):
        entered.set()
        await release.wait()

    interceptors = [recording(log, "one")]
    environ = {"MAX_CONCURRENT_CALLS": "1"}
    async with serving(call_type, act, interceptors=interceptors, environ=environ) as opened:
        first = asyncio.ensure_future(call(opened, call_type))
        await entered.wait()
        assert (await refusal(opened, call_type)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        release.set()
        await first
    assert log == ["one begins", "one ends"]


async def test_health_has_no_interceptors():
    """Probes and balancing clients are not refused by a team's interceptor."""
    refuse = raising(StatusError(grpc.StatusCode.UNAUTHENTICATED, "who?"))
    async with serving(CallType.UNARY, nothing, interceptors=[refuse]) as opened:
        check = opened.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x01"
        assert (await failure(opened, CallType.UNARY)).code() is grpc.StatusCode.UNAUTHENTICATED


@TYPES
async def test_a_deadline_holds_in_interceptors(call_type):
    """One that hangs is ended with the call, and sees its cancellation."""
    log = []

    @asynccontextmanager
    async def hang(_call):
        await asyncio.Event().wait()
        yield

    interceptors = [recording(log, "outer"), hang]
    async with serving(call_type, nothing, interceptors=interceptors) as opened:
        failed = await failure(opened, call_type, timeout=0.3)
        assert failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert log == ["outer begins", "outer sees CancelledError"]


@TYPES
async def test_observers_of_a_server(call_type):
    """They are told of each call's begin, and of its status at its end."""
    codes = asyncio.Queue()

    class Observer:
        def started(self, call):
            assert call.code is None

        def ended(self, call):
            codes.put_nowait((call.method.path, call.code))

    async with serving(call_type, raise_status, observers=[Observer()]) as opened:
        await failure(opened, call_type)
        while (seen := await asyncio.wait_for(codes.get(), 10))[0] != PATH:
            pass
    assert seen == (PATH, grpc.StatusCode.NOT_FOUND)


@TYPES
async def test_interceptors_of_a_channel(call_type):
    """They run around each call, the first one outermost, and what they append to its metadata is sent."""
    log, received = [], {}

    @asynccontextmanager
    async def tenant(seen):
        seen.metadata.append(("tenant", "blue"))
        log.append((seen.method.path, seen.time_remaining() > 0))
        yield

    async def act(context):
        received.update(context.invocation_metadata())

    interceptors = [recording(log, "one"), tenant, recording(log, "two")]
    async with serving(call_type, act, client_interceptors=interceptors) as opened:
        assert await call(opened, call_type, metadata=(("own", "1"),)) != []
        for _ in range(100):  # those of a stream end after it
            if log[-1] == "one ends":
                break
            await asyncio.sleep(0.01)
    assert (received["tenant"], received["own"]) == ("blue", "1")
    assert log == ["one begins", (PATH, True), "two begins", "two ends", "one ends"]


@TYPES
async def test_an_interceptor_of_a_channel_sees_the_error(call_type):
    """The error of the call comes out of its yield."""
    seen = asyncio.Queue()

    @asynccontextmanager
    async def interceptor(_call):
        try:
            yield
        except grpc.aio.AioRpcError as error:
            seen.put_nowait((error.code(), error.details()))
            raise

    with capture_logs() as logs:
        async with serving(call_type, raise_status, client_interceptors=[interceptor]) as opened:
            failed = await failure(opened, call_type)
            assert await asyncio.wait_for(seen.get(), 10) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert (failed.code(), failed.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
    errors = [line["event"] for line in logs if line["log_level"] == "error"]
    assert [event for event in errors if event != "event loop blocked"] == []  # as on a busy machine


@TYPES
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StatusError(grpc.StatusCode.UNAUTHENTICATED, "no token"), grpc.StatusCode.UNAUTHENTICATED),
        (OSError("/secret"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_an_interceptor_of_a_channel_that_raises_fails_the_call(call_type, error, code):
    """The call never leaves, and the caller gets a status as from a server."""
    log = []

    async def act(_context):
        log.append("handler")

    async with serving(call_type, act, client_interceptors=[raising(error)]) as opened:
        failed = await failure(opened, call_type)
    assert failed.code() is code
    assert "secret" not in failed.details()
    assert log == []


class Unusual(BaseException):
    """Is no Exception, as what some frameworks end their tasks with."""


async def await_a_cancelled_task():
    """Await what somebody else has cancelled."""
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def raise_what_is_no_exception():
    """Raise a BaseException."""
    raise Unusual("secret")


@TYPES
@pytest.mark.parametrize("act", [await_a_cancelled_task, raise_what_is_no_exception])
async def test_an_interceptor_of_a_channel_that_ends_in_an_unusual_way_fails_the_call(call_type, act):
    """The caller, whom nobody has cancelled, gets a status in time, whatever the type of the call."""

    @asynccontextmanager
    async def interceptor(_call):
        await act()
        yield

    async with serving(call_type, nothing, client_interceptors=[interceptor]) as opened:
        failed = await asyncio.wait_for(failure(opened, call_type, timeout=5), 10)
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert failed.details().startswith("internal error ")


@TYPES
async def test_a_timeout_holds_in_interceptors_of_a_channel(call_type):
    """One that hangs is ended with the call."""

    @asynccontextmanager
    async def hang(_call):
        await asyncio.Event().wait()
        yield

    async with serving(call_type, nothing, client_interceptors=[hang]) as opened:
        failed = await failure(opened, call_type, timeout=0.3)
    assert failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failed.details() == "the interceptor hang was not ready within 0.3 s"


@TYPES
async def test_an_interceptor_of_a_channel_may_change_the_error_of_a_single_response(call_type):
    """A response that streams has ended for the caller before its interceptors end: that is too late."""

    @asynccontextmanager
    async def interceptor(_call):
        try:
            yield
        except grpc.aio.AioRpcError:
            raise StatusError(grpc.StatusCode.ABORTED, "another") from None

    async with serving(call_type, raise_status, client_interceptors=[interceptor]) as opened:
        code = (await failure(opened, call_type)).code()
    is_single = call_type in {CallType.UNARY, CallType.CLIENT_STREAM}
    assert code is (grpc.StatusCode.ABORTED if is_single else grpc.StatusCode.NOT_FOUND)


@TYPES
async def test_a_cancelled_call_leaves_the_interceptors_of_its_channel(call_type):
    """A caller that gives up ends what runs around its call."""
    left, entered = asyncio.Event(), asyncio.Event()

    async def act(_context):
        entered.set()
        await asyncio.Event().wait()

    async with serving(call_type, act, client_interceptors=[telling(left)]) as opened:
        task = asyncio.ensure_future(call(opened, call_type))
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        await asyncio.wait_for(left.wait(), 10)


@asynccontextmanager
async def suppressing(_call):
    """Suppress whatever comes out of the call."""
    with suppress(BaseException):
        yield


@asynccontextmanager
async def not_leaving(_call):
    """Hang once the call has ended."""
    yield
    await asyncio.Event().wait()


@TYPES
@pytest.mark.parametrize("error", [SystemExit(3), BaseExceptionGroup("two", [KeyError(), SystemExit()])])
async def test_an_interceptor_of_a_channel_may_raise_anything(call_type, error):
    """What is no Exception fails the call, too: it neither hangs nor ends the event loop."""
    async with (
        asyncio.timeout(20),
        serving(call_type, nothing, client_interceptors=[raising(error)]) as opened,
    ):
        assert (await failure(opened, call_type)).code() is grpc.StatusCode.INTERNAL


@TYPES
async def test_an_interceptor_of_a_channel_that_suppresses_what_has_kept_a_call_from_its_start(call_type):
    """There is no call to return: the caller is told what has happened."""
    refuse = raising(StatusError(grpc.StatusCode.UNAUTHENTICATED, "no token"))
    interceptors = [suppressing, refuse]
    async with asyncio.timeout(20), serving(call_type, nothing, client_interceptors=interceptors) as opened:
        failed = await failure(opened, call_type)
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert failed.details() == f"an interceptor of {PATH} has suppressed an exception"


@pytest.mark.parametrize("call_type", [CallType.UNARY, CallType.CLIENT_STREAM])
async def test_an_interceptor_of_a_channel_that_does_not_end(call_type):
    """It keeps the answer from its caller no longer than a moment after the timeout."""
    async with (
        asyncio.timeout(20),
        serving(call_type, nothing, client_interceptors=[not_leaving]) as opened,
    ):
        failed = await failure(opened, call_type, timeout=0.3)
    assert failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failed.details() == f"an interceptor of {PATH} did not end with its call"


@TYPES
@pytest.mark.parametrize("pair", [("key", 5), ("key-bin", "text"), ("Key", "upper"), ("key", "\n")])
async def test_metadata_of_an_interceptor_that_can_not_be_sent(call_type, pair):
    """The call fails at once."""

    @asynccontextmanager
    async def interceptor(seen):
        seen.metadata.append(pair)
        yield

    async with asyncio.timeout(20), serving(call_type, nothing, client_interceptors=[interceptor]) as opened:
        with pytest.raises((grpc.aio.AioRpcError, TypeError)):
            await call(opened, call_type)


WRITERS = pytest.mark.parametrize("call_type", [CallType.CLIENT_STREAM, CallType.BIDI_STREAM])


@WRITERS
async def test_interceptors_let_a_caller_write(call_type):
    """The calls of grpc.aio's other way to stream requests do what they do without interceptors."""
    log = []
    async with (
        asyncio.timeout(20),
        serving(call_type, nothing, client_interceptors=[recording(log, "one")]) as opened,
    ):
        made = getattr(opened, call_type.shape)(PATH)()
        await made.wait_for_connection()
        await made.write(b"1")
        await made.write(b"2")
        await made.done_writing()
        answers = [await made] if call_type is CallType.CLIENT_STREAM else [each async for each in made]
        assert set(answers) == {b"answer"}
        assert await made.code() is grpc.StatusCode.OK
        await asyncio.sleep(0)
        assert log == ["one begins", "one ends"]


@WRITERS
async def test_interceptors_let_a_caller_see_the_headers_while_it_streams(call_type):
    """The headers come before the last request is written."""
    headers = asyncio.Event()

    async def requests():
        yield b"1"
        await headers.wait()

    async def echo(request_iterator, context):
        await context.send_initial_metadata((("key", "value"),))
        async for _ in request_iterator:
            pass
        return b"answer"

    async def echo_streaming(request_iterator, context):
        yield await echo(request_iterator, context)

    method = echo if call_type is CallType.CLIENT_STREAM else echo_streaming
    methods = {"Call": getattr(grpc, f"{call_type.shape}_rpc_method_handler")(method)}
    generic = grpc.method_handlers_generic_handler("test.Any", methods)
    async with (
        asyncio.timeout(20),
        serve_on_loopback(
            None,
            lambda _none, server: server.add_generic_rpc_handlers([generic]),
            channel=partial(channel, interceptors=[recording([], "one")]),
        ) as opened,
    ):
        made = getattr(opened, call_type.shape)(PATH)(requests())
        assert ("key", "value") in list(await made.initial_metadata())
        headers.set()
        answers = [await made] if call_type is CallType.CLIENT_STREAM else [each async for each in made]
        assert answers == [b"answer"]
        assert await made.code() is grpc.StatusCode.OK


async def test_a_caller_that_gives_up_a_written_stream_ends_it():
    """Who waits for the one response and is cancelled cancels the call."""
    left = asyncio.Event()

    async with (
        asyncio.timeout(20),
        serving(CallType.CLIENT_STREAM, nothing, client_interceptors=[telling(left)]) as opened,
    ):
        made = opened.stream_unary(PATH)()
        await made.write(b"1")
        waiting = asyncio.ensure_future(made)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await left.wait()
        assert await made.code() is grpc.StatusCode.CANCELLED
