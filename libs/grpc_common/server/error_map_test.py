"""A team's exceptions become the statuses that `Server(errors=)` has for them."""

import asyncio
import functools
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common import Server, ServerConfig, StatusError, error_details, not_found, unavailable
from grpc_common.testing.server import serving_handlers

PRIVATE = "what only the log may tell"
INTERNAL, ABORTED, NOT_FOUND = grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND


class NoSuchUserError(Exception):
    """A team's exception."""


class ConflictError(Exception):
    """Another."""


class StaleError(ConflictError):
    """One that derives from it."""


class GoneError(StaleError, NoSuchUserError):
    """One that derives from two; the first is nearer."""


class OwnStatusError(StatusError, ConflictError):
    """One with a status of its own."""


class BrokenError(Exception):
    """One whose function fails."""


class OddError(Exception):
    """One whose function returns something else."""


class ExitingError(Exception):
    """One whose function wants to end the process."""


class CancellingError(Exception):
    """One whose function raises a cancellation."""


class BusyError(Exception):
    """One with details and metadata."""


class ImpossibleError(Exception):
    """One whose status can't be sent."""


def raise_(error: BaseException):
    """Raise it, in a lambda."""
    raise error


ERRORS = {
    NoSuchUserError: lambda error: not_found(str(error), resource_type="user.User"),
    ConflictError: grpc.StatusCode.ABORTED,
    BrokenError: lambda error: raise_(ValueError(f"{PRIVATE} {error}")),
    OddError: lambda error: f"{PRIVATE} {error}",
    ExitingError: lambda _error: raise_(SystemExit(1)),
    CancellingError: lambda _error: raise_(asyncio.CancelledError()),
    BusyError: lambda error: unavailable(str(error), retry_after=1.5),
    ImpossibleError: lambda _error: StatusError(NOT_FOUND, PRIVATE, metadata=[("Bad Key", "x")]),
}


def grouped(*errors: Exception) -> Exception:
    """Return a group of them in another."""
    return ExceptionGroup(PRIVATE, [ExceptionGroup(PRIVATE, errors)])


ENDS = [
    (NoSuchUserError("no user 7"), NOT_FOUND, "no user 7"),
    (ConflictError(PRIVATE), ABORTED, "in conflict with another"),
    (StaleError(PRIVATE), ABORTED, "in conflict with another"),
    (GoneError(PRIVATE), ABORTED, "in conflict with another"),
    (StatusError(grpc.StatusCode.OUT_OF_RANGE, "past the end"), grpc.StatusCode.OUT_OF_RANGE, "past the end"),
    (OwnStatusError(grpc.StatusCode.DATA_LOSS, "its own"), grpc.StatusCode.DATA_LOSS, "its own"),
    (grouped(NoSuchUserError("no user 7")), NOT_FOUND, "no user 7"),
    (grouped(ConflictError(PRIVATE), NoSuchUserError(PRIVATE)), ABORTED, "in conflict with another"),
    (grouped(not_found("first"), ConflictError(PRIVATE)), NOT_FOUND, "first"),
    (BaseExceptionGroup(PRIVATE, [asyncio.CancelledError(), ConflictError(PRIVATE)]), ABORTED, "conflict"),
    (grouped(NoSuchUserError(PRIVATE), KeyError(PRIVATE)), INTERNAL, "internal error "),
    (KeyError(PRIVATE), INTERNAL, "internal error "),
    (asyncio.CancelledError(PRIVATE), INTERNAL, "internal error "),
    (BrokenError("x"), INTERNAL, "internal error "),
    (OddError("x"), INTERNAL, "internal error "),
    (ExitingError("x"), INTERNAL, "internal error "),
    (CancellingError("x"), INTERNAL, "internal error "),
    (ImpossibleError("x"), INTERNAL, "internal error "),
]


def handlers(error: BaseException) -> dict:
    """Return a method of each form that raises `error`, those that stream after a message."""
    return coroutines(error) | plain_functions(error)


def coroutines(error: BaseException) -> dict:
    """Return those that are coroutines and asynchronous generators."""

    async def unary(_request, _context):
        raise error

    async def gather(requests, _context):
        async for _ in requests:
            raise error

    async def spread(request, _context):
        yield request
        raise error

    async def chat(requests, _context):
        async for request in requests:
            yield request
            raise error

    async def in_task(_request, _context):
        async def fail():
            raise error

        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    return {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Gather": grpc.stream_unary_rpc_method_handler(gather),
        "Spread": grpc.unary_stream_rpc_method_handler(spread),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "InTask": grpc.unary_unary_rpc_method_handler(in_task),
    }


def plain_functions(error: BaseException) -> dict:
    """Return those that run in threads."""

    def plain(_request, _context):
        raise error

    def plain_spread(request, _context):
        yield request
        raise error

    return {
        "Plain": grpc.unary_unary_rpc_method_handler(plain),
        "PlainSpread": grpc.unary_stream_rpc_method_handler(plain_spread),
    }


@asynccontextmanager
async def serving(methods: dict, errors=None):
    """Serve methods with a map; yield a channel."""
    async with serving_handlers(methods, errors or ERRORS) as channel:
        yield channel


async def call(channel: grpc.aio.Channel, name: str, **options) -> grpc.aio.AioRpcError:
    """Call a method and return the error that ends it; a stream has had its message."""
    started = channel.stream_stream(f"/test.Methods/{name}")(iter([b"x"]), timeout=10, **options)
    received = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in started:
            received.append(message)  # noqa: PERF401 (what came before an error counts)
    assert received == ([b"x"] if name in {"Spread", "Chat", "PlainSpread"} else [])
    return caught.value


@pytest.mark.parametrize(("error", "code", "text"), ENDS, ids=lambda value: type(value).__name__)
async def test_exceptions_have_the_status_of_the_map(error, code, text):
    """Every kind of handler ends with the status that the map has, or INTERNAL and a line in the log."""
    with capture_logs() as logs:
        async with serving(handlers(error)) as channel:
            for name in handlers(error):
                if name == "InTask" and isinstance(error, asyncio.CancelledError):
                    continue  # a task that is cancelled ends its group well
                failure = await call(channel, name)
                assert (name, failure.code()) == (name, code)
                assert text in failure.details()
                assert PRIVATE not in failure.details()
    bugs = [line for line in logs if line["event"] == "unexpected exception"]
    assert bool(bugs) == (code is INTERNAL)


async def test_details_and_metadata_of_a_function_are_sent():
    """What a function puts into its StatusError reaches the caller."""
    async with serving(handlers(BusyError("busy"))) as channel:
        failure = await call(channel, "Unary")
    assert (failure.code(), failure.details()) == (grpc.StatusCode.UNAVAILABLE, "busy")
    assert dict(failure.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"
    (info,) = error_details(failure)
    assert info.retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_every_code_has_a_sentence(code):
    """With a code alone the caller gets a general sentence, and nothing of the exception's text."""
    async with serving(handlers(ConflictError(PRIVATE)), {ConflictError: code}) as channel:
        failure = await call(channel, "Unary")
    assert failure.code() is code
    assert len(failure.details()) > 10
    assert PRIVATE not in failure.details()


async def test_failing_function_is_logged_with_the_exception():
    """The log has the function's mistake, and what it was given as its context."""
    with capture_logs() as logs:
        async with serving(handlers(BrokenError("x"))) as channel:
            await call(channel, "Unary")
    (bug,) = [line for line in logs if line["event"] == "unexpected exception"]
    assert isinstance(bug["exc_info"], ValueError)
    assert isinstance(bug["exc_info"].__context__, BrokenError)


async def test_map_of_all_exceptions_leaves_what_has_a_status():
    """Even `Exception` in the map takes nothing from an abort, a StatusError or a missing method."""

    async def abort(_request, context):
        await context.abort(NOT_FOUND, "no user")

    async def not_there(_request, context):
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        raise NotImplementedError

    methods = {
        "Abort": grpc.unary_unary_rpc_method_handler(abort),
        "NotThere": grpc.unary_unary_rpc_method_handler(not_there),
        **handlers(StatusError(grpc.StatusCode.OUT_OF_RANGE, "past the end")),
    }
    async with serving(methods, {Exception: grpc.StatusCode.DATA_LOSS}) as channel:
        assert (await call(channel, "Abort")).details() == "no user"
        assert (await call(channel, "NotThere")).code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await call(channel, "Unary")).code() is grpc.StatusCode.OUT_OF_RANGE
        assert (await call(channel, "None")).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_cancelled_call_is_not_mapped():
    """A caller that leaves cancels its handler, and what that raises then is no bug and no status."""
    entered, ended = asyncio.Event(), asyncio.Event()

    async def wait(_request, _context):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
            raise ConflictError(PRIVATE)

    with capture_logs() as logs:
        async with serving({"Wait": grpc.unary_unary_rpc_method_handler(wait)}) as channel:
            while not entered.is_set():  # on a busy machine a call may be over before it has a handler
                started = channel.unary_unary("/test.Methods/Wait")(b"", timeout=0.2)
                with suppress(grpc.aio.AioRpcError):
                    await started
            await asyncio.wait_for(ended.wait(), 10)
    assert await started.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "ABORTED" not in [line["code"] for line in logs if line["event"] == "call"]
    assert "unexpected exception" not in [line["event"] for line in logs]


async def a_coroutine(_error):
    """Return what can't be awaited in the place where it is needed."""


BAD_MAPS = [
    ({"ConflictError": ABORTED}, TypeError, "'ConflictError' is no class of exceptions"),
    ({ConflictError("x"): ABORTED}, TypeError, "is no class of exceptions"),
    ({int: ABORTED}, TypeError, "is no class of exceptions"),
    ({BaseException: ABORTED}, TypeError, "BaseException ends a task"),
    ({asyncio.CancelledError: ABORTED}, TypeError, "CancelledError ends a task"),
    ({KeyboardInterrupt: ABORTED}, TypeError, "KeyboardInterrupt ends a task"),
    ({SystemExit: ABORTED}, TypeError, "SystemExit ends a task"),
    ({GeneratorExit: ABORTED}, TypeError, "GeneratorExit ends a task"),
    ({BaseExceptionGroup: ABORTED}, TypeError, "BaseExceptionGroup ends a task"),
    ({ExceptionGroup: ABORTED}, TypeError, "is a group; name the exceptions"),
    ({StatusError: ABORTED}, TypeError, "StatusError is a StatusError"),
    ({OwnStatusError: ABORTED}, TypeError, "OwnStatusError is a StatusError"),
    ({ConflictError: grpc.StatusCode.OK}, ValueError, "ConflictError can't be OK"),
    ({ConflictError: 10}, TypeError, "ConflictError has 10; take one of grpc.StatusCode"),
    ({ConflictError: "ABORTED"}, TypeError, "ConflictError has 'ABORTED'"),
    ({ConflictError: None}, TypeError, "ConflictError has None"),
    ({ConflictError: not_found("x")}, TypeError, "plain function"),
    ({ConflictError: a_coroutine}, TypeError, "plain function"),
    ({ConflictError: functools.partial(a_coroutine)}, TypeError, "plain function"),
    ({NoSuchUserError: ABORTED, ConflictError: 10}, TypeError, "ConflictError has 10"),
]


@pytest.mark.parametrize(("errors", "kind", "text"), BAD_MAPS, ids=lambda value: str(value)[:40])
async def test_bad_map_is_refused_at_once(errors, kind, text):
    """A server with a map that can't hold is not made, and the message has the entry and what would do."""
    with pytest.raises(kind, match=text):
        Server(ServerConfig(), errors=errors)
