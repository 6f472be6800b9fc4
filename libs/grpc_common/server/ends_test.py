"""Whatever a handler does, its call ends with a status, which the log has too."""

import asyncio
from contextlib import asynccontextmanager, suppress
from enum import StrEnum

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common import ServerConfig, StatusError
from grpc_common.server.engine import new_server
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.testing.server import serving_handlers

PRIVATE = "what only the log may tell"
INTERNAL = grpc.StatusCode.INTERNAL


class Key(StrEnum):
    """Keys of metadata, as a servicer may have them."""

    USER = "user"


class Fatal(BaseException):
    """What extension modules raise past `except Exception`."""


class UnsendableError(StatusError):
    """An error that can't be sent."""

    def __init__(self, status) -> None:
        super().__init__(grpc.StatusCode.NOT_FOUND, PRIVATE)
        self.status = status

    def to_status(self, _trailers=()):
        if isinstance(self.status, BaseException):
            raise self.status
        return self.status


def with_metadata(*pairs) -> StatusError:
    """Return an error with metadata of its own."""
    return StatusError(grpc.StatusCode.NOT_FOUND, "no user", metadata=pairs)


def nested(error: Exception, depth: int) -> Exception:
    """Return a group in a group in a group, with `error` in the last one."""
    for _ in range(depth):
        error = ExceptionGroup("a group", [error])
    return error


def raising(error):
    """Return a handler's action that raises `error`."""

    async def act(_context) -> None:
        raise error

    return act


async def _awaits_a_cancelled_task(_context):
    task = asyncio.create_task(asyncio.sleep(10))
    task.cancel()
    await task


async def _cancels_itself(_context):
    asyncio.current_task().cancel()
    await asyncio.sleep(10)


async def _fails_in_a_group(_context):
    async with asyncio.TaskGroup() as group:
        group.create_task(raising(StatusError(grpc.StatusCode.NOT_FOUND, "no user"))(None))


async def _fails_in_two_groups(_context):
    async with asyncio.TaskGroup() as group:
        group.create_task(_fails_in_a_group(None))
        group.create_task(raising(StatusError(grpc.StatusCode.NOT_FOUND, "no user"))(None))


async def _fails_in_a_group_with_a_bug(_context):
    async with asyncio.TaskGroup() as group:
        group.create_task(raising(StatusError(grpc.StatusCode.NOT_FOUND, PRIVATE))(None))
        group.create_task(raising(ValueError(PRIVATE))(None))


async def _aborts_in_a_group(context):
    async with asyncio.TaskGroup() as group:
        group.create_task(context.abort(grpc.StatusCode.NOT_FOUND, "no user"))


async def _sets_a_number(context):
    context.set_code(5)
    context.set_details("no user")


async def _sets_no_code(context):
    context.set_code("NOT_FOUND")


async def _swallows_its_abort(context):
    with suppress(grpc.aio.AbortError):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no user")
    raise ValueError(PRIVATE)


async def _swallows_its_abort_and_returns(context):
    with suppress(grpc.aio.AbortError):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no user")


async def _aborts_twice(context):
    with suppress(grpc.aio.AbortError):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no user")
    await context.abort(grpc.StatusCode.ABORTED, PRIVATE)


async def _aborts_with_ok(context):
    await context.abort(grpc.StatusCode.OK, PRIVATE)


async def _raises_ok(_context):
    raise StatusError(grpc.StatusCode.OK, PRIVATE)


async def _aborts_with_a_surrogate(context):
    await context.abort(grpc.StatusCode.NOT_FOUND, "no user \ud800")


async def _ends_well_with_a_surrogate(context):
    context.set_details("\ud800")


async def _sets_bad_trailers(context):
    context.set_trailing_metadata((("Key", "value"),))


async def _sets_trailers_of_bytes(context):
    context.set_trailing_metadata((("key", b"\xff"),))


async def _sets_a_status_as_trailer(context):
    context.set_trailing_metadata((("grpc-status", "0"),))


async def _sets_a_timeout_as_trailer(context):
    context.set_trailing_metadata((("grpc-timeout", "1S"),))  # would end the process


async def _sets_text_as_bytes(context):
    context.set_trailing_metadata((("key-bin", "text"),))


async def _forgets_to_await_its_abort(context):
    context.abort(grpc.StatusCode.NOT_FOUND, "no user").close()


async def _aborts_with_bad_trailers(context):
    await context.abort(grpc.StatusCode.NOT_FOUND, PRIVATE, (("a key", "value"),))


async def _sends_bad_headers(context):
    await context.send_initial_metadata((("key", "\n"),))


async def _sets_no_compression(context):
    context.set_compression(99)


async def _swallows_a_cancellation(context):
    await _swallows_its_abort_and_returns(context)
    asyncio.current_task().cancel()


ENDS = [
    (raising(asyncio.CancelledError()), INTERNAL),
    (raising(SystemExit(1)), INTERNAL),
    (raising(Fatal(PRIVATE)), INTERNAL),
    (raising(StopIteration(PRIVATE)), INTERNAL),
    (raising(GeneratorExit(PRIVATE)), INTERNAL),
    (raising(TimeoutError(PRIVATE)), INTERNAL),
    (raising(UnsendableError(RuntimeError(PRIVATE))), INTERNAL),
    (raising(UnsendableError(asyncio.CancelledError(PRIVATE))), INTERNAL),
    (raising(UnsendableError(SystemExit(1))), INTERNAL),
    (raising(UnsendableError(None)), INTERNAL),
    (raising(with_metadata(("Key", "value"))), INTERNAL),
    (raising(with_metadata(("key", "\ud800"))), INTERNAL),
    (raising(with_metadata(("key-bin", "text"))), INTERNAL),
    (raising(with_metadata(("key", 5))), INTERNAL),
    (raising(with_metadata("key")), INTERNAL),
    (raising(with_metadata((Key.USER, "value"))), grpc.StatusCode.NOT_FOUND),
    (raising(nested(StatusError(grpc.StatusCode.NOT_FOUND, "no user"), 5000)), grpc.StatusCode.NOT_FOUND),
    (raising(nested(ValueError(PRIVATE), 5000)), INTERNAL),
    (raising(grpc.aio.AbortError(PRIVATE)), INTERNAL),
    (raising(ExceptionGroup(PRIVATE, [ValueError(PRIVATE)])), INTERNAL),
    (_awaits_a_cancelled_task, INTERNAL),
    (_cancels_itself, grpc.StatusCode.CANCELLED),
    (_fails_in_a_group, grpc.StatusCode.NOT_FOUND),
    (_fails_in_two_groups, grpc.StatusCode.NOT_FOUND),
    (_fails_in_a_group_with_a_bug, INTERNAL),
    (_aborts_in_a_group, grpc.StatusCode.NOT_FOUND),
    (_sets_a_number, grpc.StatusCode.NOT_FOUND),
    (_sets_no_code, grpc.StatusCode.UNKNOWN),
    (_swallows_its_abort, grpc.StatusCode.NOT_FOUND),
    (_swallows_its_abort_and_returns, grpc.StatusCode.NOT_FOUND),
    (_aborts_twice, grpc.StatusCode.NOT_FOUND),
    (_aborts_with_ok, grpc.StatusCode.UNKNOWN),
    (_raises_ok, INTERNAL),
    (_aborts_with_a_surrogate, grpc.StatusCode.NOT_FOUND),
    (_ends_well_with_a_surrogate, grpc.StatusCode.OK),
    (_sets_bad_trailers, INTERNAL),
    (_sets_trailers_of_bytes, INTERNAL),
    (_sets_a_status_as_trailer, INTERNAL),
    (_sets_a_timeout_as_trailer, INTERNAL),
    (_sets_text_as_bytes, INTERNAL),
    (_forgets_to_await_its_abort, grpc.StatusCode.NOT_FOUND),
    (_aborts_with_bad_trailers, INTERNAL),
    (_sends_bad_headers, INTERNAL),
    (_sets_no_compression, INTERNAL),
    (_swallows_a_cancellation, grpc.StatusCode.NOT_FOUND),
]


def handlers(act) -> dict:
    """Return a method of each form that a coroutine can have, which does `act` before its answer."""

    async def unary(request, context):
        await act(context)
        return request

    async def gather(requests, context):
        received = [request async for request in requests]
        await act(context)
        return b"".join(received)

    async def spread(request, context):
        yield request
        await act(context)

    async def write(request, context):
        await context.write(request)
        await act(context)

    async def chat(requests, context):
        async for request in requests:
            yield request
        await act(context)

    return {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Gather": grpc.stream_unary_rpc_method_handler(gather),
        "Spread": grpc.unary_stream_rpc_method_handler(spread),
        "Write": grpc.unary_stream_rpc_method_handler(write),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }


@asynccontextmanager
async def serving(act, **environ: str):
    """Serve the handlers; yield a channel."""
    async with serving_handlers(handlers(act), **environ) as channel:
        yield channel


async def outcome(
    channel: grpc.aio.Channel, name: str, seconds: float | None = 10
) -> tuple[grpc.StatusCode, str]:
    """Call a method and return how that ended."""
    call = channel.stream_stream(f"/test.Methods/{name}")(iter([b"x"]), timeout=seconds)
    with suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    return await call.code(), await call.details()


@pytest.mark.parametrize(("act", "code"), ENDS, ids=lambda value: getattr(value, "__name__", None))
async def test_every_end_is_a_status(act, code):
    """The client gets a status in time, the log has the same one, and no word that was not for the client."""
    with capture_logs() as logs:
        async with serving(act) as channel:
            for name in handlers(act):
                got, details = await outcome(channel, name)
                assert (name, got) == (name, code)
                assert PRIVATE not in details
                assert code is not INTERNAL or details.startswith("internal error ")
                if code is grpc.StatusCode.NOT_FOUND:
                    assert details.startswith("no user")
    lines = [(line["method"], line["code"]) for line in logs if line["event"] == "call"]
    assert lines == [(f"/test.Methods/{name}", code.name) for name in handlers(act)]


async def test_overdue_handler_that_goes_on():
    """A handler that swallows the cancellation at its deadline does not keep its client waiting."""
    over = asyncio.Event()

    async def go_on(_context) -> None:
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()

    limits = {"DEFAULT_DEADLINE": "50ms", "DEFAULT_STREAM_DEADLINE": "50ms"}
    async with serving(go_on, **limits) as channel:
        outcomes = {await outcome(channel, name, None) for name in handlers(go_on)}
        over.set()
    ((code, details),) = outcomes
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "longer than 50ms" in details


async def test_context_outlives_its_call():
    """What a servicer asks its context after the call's end is answered or refused; gRPC would crash."""
    kept = []

    async def keep(context) -> None:
        kept.append(context)

    async with serving(keep) as channel:
        for name in handlers(keep):
            assert (await outcome(channel, name))[0] is grpc.StatusCode.OK
        await outcome(channel, "Unary")  # those before have been freed by now
        for context in kept[:-1]:
            assert context.peer().startswith("ipv4:")
            assert context.done()
            assert context.invocation_metadata()
            for ask in (context.auth_context, context.peer_identities, context.peer_identity_key):
                with pytest.raises(grpc.aio.AbortError, match="is over"):
                    ask()
            with pytest.raises(grpc.aio.AbortError):
                await context.write(b"")


@pytest.mark.parametrize("response", [None, "text", 5, bytearray(b"x")])
async def test_response_that_is_no_message(response):
    """A servicer that returns what is no message has a bug like any other."""

    async def unary(_request, _context):
        return response

    with capture_logs():
        async with serving_handlers({"Unary": grpc.unary_unary_rpc_method_handler(unary)}) as channel:
            code, details = await outcome(channel, "Unary")
    assert (code, details[:15]) == (INTERNAL, "internal error ")


@pytest.mark.parametrize("result", [[b"x"], iter([b"x"]), b"x"], ids=lambda result: type(result).__name__)
async def test_responses_that_nobody_sends(result):
    """A coroutine that returns its responses, which gRPC would drop, has a bug like any other."""

    async def stream(_request, _context):
        return result

    with capture_logs():
        async with serving_handlers({"Stream": grpc.unary_stream_rpc_method_handler(stream)}) as channel:
            code, details = await outcome(channel, "Stream")
    assert (code, details[:15]) == (INTERNAL, "internal error ")


async def test_handler_that_cannot_be_found():
    """A generic handler that raises ends its calls without telling the caller why."""

    class Broken(grpc.GenericRpcHandler):
        def service(self, _details):
            raise ValueError(PRIVATE)

    server = new_server(ServerConfig().server, Lifecycle(ServerConfig().server))
    server.add_generic_rpc_handlers([Broken()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with capture_logs() as logs:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            code, details = await outcome(channel, "Unary")
    await server.stop(None)
    assert (code, details[:15]) == (INTERNAL, "internal error ")
    assert "unexpected exception" in [line["event"] for line in logs]


class Three:
    """An iterator without `aclose`."""

    def __init__(self) -> None:
        self._left = 3

    def __aiter__(self):
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return b"x"


async def _returns_an_iterator(_request, _context):
    return Three()


async def _iterates(_request, _context):
    async for message in Three():
        yield message


@pytest.mark.parametrize(
    "method",
    [lambda _request, _context: Three(), _returns_an_iterator, _iterates],
    ids=["plain", "coroutine", "generator"],
)
async def test_responses_of_any_form_are_sent(method):
    """What a method that streams gives back is sent, whichever way it comes to it."""
    async with serving_handlers({"Spread": grpc.unary_stream_rpc_method_handler(method)}) as channel:
        call = channel.unary_stream("/test.Methods/Spread")(b"", timeout=10)
        assert [message async for message in call] == [b"x"] * 3


async def test_large_response_changes_no_other_end():
    """A method that has given a large response still gives small ones, and errors without a message."""

    async def unary(request, context):
        if request == b"code":
            context.set_code(grpc.StatusCode.NOT_FOUND)
        elif request == b"abort":
            await _swallows_its_abort_and_returns(context)
        elif request == b"error":
            raise StatusError(grpc.StatusCode.NOT_FOUND, "no user")
        return request

    async def messages(channel, request) -> tuple[grpc.StatusCode, list[bytes]]:
        call = channel.unary_stream("/test.Methods/Unary")(request, timeout=10)
        received = []
        with suppress(grpc.aio.AioRpcError):
            async for message in call:
                received.append(message)  # noqa: PERF401 (what came before an error counts)
        return await call.code(), received

    async with serving_handlers({"Unary": grpc.unary_unary_rpc_method_handler(unary)}) as channel:
        for request in (bytes(200_000), b"small", bytes(200_000)):
            assert await messages(channel, request) == (grpc.StatusCode.OK, [request])
        for request in (b"code", b"abort", b"error"):
            assert await messages(channel, request) == (grpc.StatusCode.NOT_FOUND, [])
