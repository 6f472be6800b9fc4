"""Plain functions as servicers, as grpc.server and grpc.aio take them."""

import asyncio
import functools
import gc
import sys
import threading
import time
import weakref
from contextlib import suppress
from unittest.mock import AsyncMock, Mock

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common import StatusError
from grpc_common.server.threads import Threads
from grpc_common.testing.server import serving_handlers

LOOP_THREAD = threading.current_thread()


class Forms:
    """A method of each type as a plain function, which does `act(context)` before its answer."""

    def __init__(self, act=lambda _context: None) -> None:
        self.act = act

    def unary(self, request, context):
        self.act(context)
        return request

    def gather(self, requests, context):
        received = b"".join(requests)
        self.act(context)
        return received

    def spread(self, request, context):
        yield request
        self.act(context)
        yield request

    def listed(self, request, context):
        self.act(context)
        return [request, request]

    def chat(self, requests, context):
        yield from requests
        self.act(context)

    def handlers(self) -> dict:
        return {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Gather": grpc.stream_unary_rpc_method_handler(self.gather),
            "Spread": grpc.unary_stream_rpc_method_handler(self.spread),
            "Listed": grpc.unary_stream_rpc_method_handler(self.listed),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }


ANSWERS = {
    "Unary": [b"x"],
    "Gather": [b"xy"],
    "Spread": [b"x", b"x"],
    "Listed": [b"x", b"x"],
    "Chat": [b"x", b"y"],
}


async def outcome(channel, name, seconds=10) -> tuple[grpc.StatusCode, str, list[bytes]]:
    """Call a method with a message, or with two if it takes them; return code, details and answers."""
    requests = [b"x", b"y"] if name in {"Gather", "Chat"} else [b"x"]
    call = channel.stream_stream(f"/test.Methods/{name}")(iter(requests), timeout=seconds)
    answers = []
    with suppress(grpc.aio.AioRpcError):
        async for answer in call:
            answers.append(answer)  # noqa: PERF401 (what came before an error counts)
    return await call.code(), await call.details(), answers


async def test_runs_in_a_thread():
    """A plain function answers, and does not stand in the event loop's way."""
    threads = []
    forms = Forms(lambda _context: threads.append(threading.current_thread()))
    async with serving_handlers(forms.handlers()) as channel:
        for name, answers in ANSWERS.items():
            assert await outcome(channel, name) == (grpc.StatusCode.OK, "", answers)
    assert len(threads) == len(ANSWERS)
    assert LOOP_THREAD not in threads


async def test_denied_caller_gets_nothing():
    """After an abort a plain function gives nothing away, whether it aborts before or between its answers."""

    def deny(context):
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")

    denied = grpc.StatusCode.PERMISSION_DENIED, "not you"
    async with serving_handlers(Forms(deny).handlers()) as channel:
        for name in ANSWERS:
            before = {"Spread": [b"x"], "Chat": [b"x", b"y"]}.get(name, [])
            assert await outcome(channel, name) == (*denied, before)


def _raises(_context):
    raise StatusError(grpc.StatusCode.NOT_FOUND, "no user")


def _sets(context):
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("no user")


def _aborts(context):
    context.abort(grpc.StatusCode.NOT_FOUND, "no user", (("k", "v"),))


def _swallows(context):
    with suppress(Exception):
        _aborts(context)


@pytest.mark.parametrize("act", [_raises, _sets, _aborts, _swallows])
async def test_ends(act):
    """An exception, a code, and an abort, swallowed or not, are statuses as in a coroutine."""
    async with serving_handlers(Forms(act).handlers()) as channel:
        for name in ANSWERS:
            code, details, _ = await outcome(channel, name)
            assert (name, code, details) == (name, grpc.StatusCode.NOT_FOUND, "no user")


@pytest.mark.parametrize("error", [ValueError("secret"), StopIteration("secret"), SystemExit(1)], ids=repr)
async def test_bug(error):
    """Whatever else a plain function raises is INTERNAL without its text."""

    def fail(_context):
        raise error

    with capture_logs() as logs:
        async with serving_handlers(Forms(fail).handlers()) as channel:
            for name in ANSWERS:
                code, details, _ = await outcome(channel, name)
                assert (code, details[:15]) == (grpc.StatusCode.INTERNAL, "internal error ")
    assert [line["event"] for line in logs].count("unexpected exception") == len(ANSWERS)


async def test_whole_context():
    """The context is grpc.server's, with all that it offers."""
    seen = {}
    called = threading.Event()

    def look(context):
        seen["metadata"] = dict(context.invocation_metadata())["k"]
        assert context.auth_context()["transport_security_type"] == [b"insecure"]
        seen["identity"] = context.peer_identities(), context.peer_identity_key()
        seen["state"] = (context.is_active(), context.code(), context.details())
        assert context.peer().startswith("ipv4:")
        assert 40 < context.time_remaining() < 51  # gRPC rounds up
        assert context.add_callback(called.set)
        context.set_compression(grpc.Compression.Gzip)
        context.disable_next_message_compression()
        context.send_initial_metadata((("head", "er"),))
        context.set_trailing_metadata((("trail", "er"),))
        assert dict(context.trailing_metadata()) == {"trail": "er"}

    async with serving_handlers(Forms(look).handlers()) as channel:
        call = channel.unary_unary("/test.Methods/Unary")(b"x", timeout=50, metadata=(("k", "v"),))
        assert await call == b"x"
        assert dict(await call.initial_metadata())["head"] == "er"
        assert dict(await call.trailing_metadata())["trail"] == "er"
    assert seen == {"metadata": "v", "identity": (None, None), "state": (True, None, "")}
    assert called.wait(5)


async def test_client_that_leaves():
    """A function whose client is gone can find out, and what it waits for fails."""
    entered, seen = threading.Event(), []
    left = threading.Event()

    def requests_of(requests, context):
        entered.set()
        try:
            for _ in requests:
                pass
        finally:
            while context.is_active():
                time.sleep(0.001)
            seen.append("left")
            left.set()
        yield b""

    handlers = {"Chat": grpc.stream_stream_rpc_method_handler(requests_of)}
    async with serving_handlers(handlers) as channel:
        call = channel.stream_stream("/test.Methods/Chat")()
        await call.write(b"x")
        assert await asyncio.to_thread(entered.wait, 10)
        call.cancel()
        assert await asyncio.to_thread(left.wait, 10)
    assert seen == ["left"]


async def test_deadline_of_a_function_that_hangs():
    """The client of a function that hangs gets its status, and the server serves others and ends."""
    release = threading.Event()

    def hang(_request, _context):
        release.wait(60)

    async def echo(request, _context):
        return request

    handlers = {
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
    }
    async with serving_handlers(handlers, DEFAULT_DEADLINE="50ms") as channel:
        calls = [outcome(channel, "Hang", None) for _ in range(100)]  # more than there are threads
        assert {code for code, _, _ in await asyncio.gather(*calls)} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert (await outcome(channel, "Echo"))[2] == [b"x"]
    release.set()


async def test_abort_of_a_function_that_hangs():
    """A function that hangs after an abort, which it swallows, leaves its client the status of the abort."""
    release = threading.Event()

    def hang(_request, context):
        with suppress(grpc.aio.AbortError):
            context.abort(grpc.StatusCode.NOT_FOUND, "no user")
        release.wait(60)

    handlers = {"Hang": grpc.unary_unary_rpc_method_handler(hang)}
    async with serving_handlers(handlers, DEFAULT_DEADLINE="50ms") as channel:
        async with asyncio.timeout(20):
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            while code is grpc.StatusCode.DEADLINE_EXCEEDED:  # a busy machine may begin a thread too late
                code, details, _ = await outcome(channel, "Hang", None)
        release.set()
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "no user")


async def test_forgets_what_no_thread_began():
    """Calls that end before they get a thread leave nothing behind, though all threads hang."""
    release = threading.Event()
    threads = Threads(1)
    hanging = asyncio.create_task(threads.run(release.wait))
    await asyncio.sleep(0)

    def work() -> None:
        """Stand for a method with its request."""

    left = weakref.ref(work)
    waiting = asyncio.create_task(threads.run(work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    del work, waiting
    gc.collect()
    assert left() is None
    release.set()
    assert await hanging


async def test_callback_that_raises():
    """A callback of the context that raises is logged, and changes neither the answer nor other callbacks."""
    called = threading.Event()

    def add(context):
        context.add_callback(lambda: sys.exit(1))
        context.add_callback(called.set)

    with capture_logs() as logs:
        async with serving_handlers(Forms(add).handlers()) as channel:
            for name, answers in ANSWERS.items():
                assert await outcome(channel, name) == (grpc.StatusCode.OK, "", answers)
    assert called.is_set()
    assert [line["event"] for line in logs].count("callback of a call failed") == len(ANSWERS)


@pytest.mark.parametrize(
    "mock", [AsyncMock(return_value=b"x"), Mock(return_value=b"x")], ids=["async", "plain"]
)
async def test_mock(mock):
    """A mock, which has every attribute that it is asked for, serves as a method."""
    async with serving_handlers({"Unary": grpc.unary_unary_rpc_method_handler(mock)}) as channel:
        assert (await outcome(channel, "Unary"))[2] == [b"x"]


def decorated(method):
    """Wrap a method as many a decorator does."""

    @functools.wraps(method)
    def wrapper(request, context):
        return method(request, context)

    return wrapper


class Callable:
    """A method that is an object."""

    async def __call__(self, request, context):
        """Answer with the thread."""
        return await _mixed(request, context)


async def _mixed(_request, context):
    await context.send_initial_metadata(())
    return threading.current_thread().name.encode()


@pytest.mark.parametrize(
    "method",
    [_mixed, decorated(_mixed), functools.partial(_mixed), functools.partial(decorated(_mixed)), Callable()],
    ids=["coroutine", "decorated", "partial", "partial of decorated", "object"],
)
async def test_coroutines_stay_in_the_loop(method):
    """What is a coroutine, however wrapped, runs in the event loop with the context of grpc.aio."""
    async with serving_handlers({"Unary": grpc.unary_unary_rpc_method_handler(method)}) as channel:
        assert await channel.unary_unary("/test.Methods/Unary")(b"") == LOOP_THREAD.name.encode()
