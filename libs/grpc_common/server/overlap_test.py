"""What several tasks do with one call at a time, and what goes on once its handler has ended."""

import asyncio
import itertools
from contextlib import suppress

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common.testing.server import serving_handlers

LARGE = b"x" * 1_000_000


async def outcome(channel, seconds=20) -> tuple[grpc.StatusCode, list[bytes]]:
    """Call the method; return how that ended, and the answers."""
    call = channel.unary_stream("/test.Methods/Method")(b"x", timeout=seconds)
    answers = []
    with suppress(grpc.aio.AioRpcError):
        async for answer in call:
            answers.append(answer)  # noqa: PERF401 (what came before an error counts)
    return await call.code(), answers


async def _gathers(_request, context):
    await asyncio.gather(*[context.write(LARGE) for _ in range(5)])


async def _groups(_request, context):
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(context.write(b"x"))


async def _sends_headers_meanwhile(_request, context):
    await asyncio.gather(
        context.send_initial_metadata((("k", "v"),)), *[context.write(b"x") for _ in range(5)]
    )


async def _returns_meanwhile(_request, context):
    for _ in range(5):
        context.task = asyncio.create_task(context.write(LARGE))
        await asyncio.sleep(0)


@pytest.mark.parametrize("method", [_gathers, _groups, _sends_headers_meanwhile, _returns_meanwhile])
async def test_tasks_write_at_once(method):
    """No response is lost, and no client waits for ever, because several tasks write to one call."""
    async with serving_handlers({"Method": grpc.unary_stream_rpc_method_handler(method)}) as channel:
        code, answers = await outcome(channel)
    assert (code, len(answers)) == (grpc.StatusCode.OK, 5)


async def test_error_while_the_first_response_leaves():
    """A status that is decided before the first response has left comes behind it."""

    async def method(_request, context):
        writing = asyncio.create_task(context.write(LARGE))
        await asyncio.sleep(0)
        context.task = writing
        await context.abort(grpc.StatusCode.NOT_FOUND, "no user")

    async with serving_handlers({"Method": grpc.unary_stream_rpc_method_handler(method)}) as channel:
        assert await outcome(channel) == (grpc.StatusCode.NOT_FOUND, [LARGE])


async def _hangs(_context):
    await asyncio.Event().wait()


async def _writes(context):
    while True:
        await context.write(LARGE)


@pytest.mark.parametrize("meanwhile", [_hangs, _writes])
async def test_abort_from_another_task(meanwhile):
    """An abort in a task of its own ends the call for its client, and its handler too."""
    ended = asyncio.Event()

    async def method(_request, context):
        async def watch() -> None:
            await asyncio.sleep(0.05)
            with suppress(grpc.aio.AbortError):
                await context.abort(grpc.StatusCode.NOT_FOUND, "no user")

        watching = asyncio.create_task(watch())
        try:
            await meanwhile(context)
        finally:
            ended.set()
            await watching

    async with serving_handlers({"Method": grpc.unary_stream_rpc_method_handler(method)}) as channel:
        code, _ = await outcome(channel)
        assert code is grpc.StatusCode.NOT_FOUND
        await asyncio.wait_for(ended.wait(), 10)


async def test_abort_in_a_group_is_no_bug():
    """The exception group that an abort in a TaskGroup makes is not logged as a bug."""

    async def method(_request, context):
        async with asyncio.TaskGroup() as group:
            group.create_task(context.abort(grpc.StatusCode.NOT_FOUND, "no user"))
            group.create_task(_hangs(context))

    with capture_logs() as logs:
        async with serving_handlers({"Method": grpc.unary_stream_rpc_method_handler(method)}) as channel:
            assert await outcome(channel) == (grpc.StatusCode.NOT_FOUND, [])
    assert "unexpected exception" not in [line["event"] for line in logs]


async def test_answer_to_a_client_that_is_gone():
    """A handler that swallows its client's deadline and answers is logged as its client saw it."""
    entered = asyncio.Event()

    async def method(request, _context):
        entered.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return request

    with capture_logs() as logs:
        async with serving_handlers({"Method": grpc.unary_unary_rpc_method_handler(method)}) as channel:
            while not entered.is_set():  # on a busy machine a call may be over before it has a handler
                assert (await outcome(channel, 0.2))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [line["code"] for line in logs if line["event"] == "call"][-1] == "DEADLINE_EXCEEDED"


async def test_cancelled_upload_is_not_complete():
    """A handler never sees the messages of a client that cancels as all that the client had to send."""
    ends = []

    async def iterate(requests, _context):
        ends.append("cancelled")
        async for _ in requests:
            pass
        ends[-1] = "complete"
        return b""

    async def read(_requests, context):
        ends.append("cancelled")
        while await context.read() is not grpc.aio.EOF:
            pass
        ends[-1] = "complete"
        return b""

    handlers = {
        "Iterate": grpc.stream_unary_rpc_method_handler(iterate),
        "Read": grpc.stream_unary_rpc_method_handler(read),
    }
    names = itertools.cycle(handlers)
    async with serving_handlers(handlers) as channel, asyncio.timeout(60):
        while len(ends) <= 50:  # on a busy machine few calls come to the servicer before they are cancelled
            name = next(names)
            call = channel.stream_unary(f"/test.Methods/{name}")()
            await call.write(b"x")
            await asyncio.sleep(0.002)
            call.cancel()
    assert set(ends) == {"cancelled"}
