"""Calls whose message has not come: they have a place, a deadline, an observer and an end like all others."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from grpc_common.testing.server import serving

METHODS = ["Echo", "Join", "Repeat", "Chat"]
BUILT_IN = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]


def dial(port: int) -> grpc.aio.Channel:
    """Return a channel that sends no deadline and repeats nothing."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)])


async def status(call) -> tuple[grpc.StatusCode, str]:
    """Return how a call ended."""
    async with asyncio.timeout(20):
        return await call.code(), await call.details()


@pytest.mark.parametrize("path", [f"/test.Methods/{name}" for name in METHODS] + BUILT_IN)
async def test_default_deadline(path):
    """A call of which only the headers come ends by the server's deadline, and the log has it."""
    with capture_logs() as logs:
        limits = {"DEFAULT_DEADLINE": "100ms", "DEFAULT_STREAM_DEADLINE": "100ms"}
        async with serving(**limits) as (port, _), dial(port) as channel:
            code, details = await status(channel.stream_stream(path)())
    assert (code, "longer than 100ms" in details) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
    lines = [(line["method"], line["code"]) for line in logs if line["event"] == "call"]
    # Lines of health checks are for the level debug.
    assert lines == ([] if path in BUILT_IN else [(path, "DEADLINE_EXCEEDED")])


@pytest.mark.parametrize("path", ["/test.Methods/Echo", "/test.Methods/Repeat", *BUILT_IN])
async def test_end_without_a_message(path):
    """A caller that ends its side without the one message gets a status at once."""
    async with serving() as (port, _), dial(port) as channel:
        call = channel.stream_stream(path)()
        await call.done_writing()
        code, details = await status(call)
    assert (code, details) == (grpc.StatusCode.INTERNAL, f"the request of {path} has no message")


async def test_bound():
    """Of 500 calls without a message a server of 10 takes 10; the others are refused before they send one."""
    async with serving(MAX_CONCURRENT_CALLS="10") as (port, _), dial(port) as channel:
        echo = channel.stream_unary("/test.Methods/Echo")
        calls = {asyncio.ensure_future(status(call)): call for call in [echo() for _ in range(500)]}
        refused: list = []
        pending = set(calls)
        while len(refused) < 490:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            refused += [waiting.result()[0] for waiting in done]
        assert set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for waiting in pending:
            calls[waiting].cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        while await channel.unary_unary("/test.Methods/Echo")(b"").code() is not grpc.StatusCode.OK:
            pass  # until the server has heard that the ten are gone


async def test_unknown_method_is_refused_before_its_message():
    """A method that does not exist is refused at once; the log has its path, cut, and who asked."""
    path = "/no.Service/" + "x" * 1000
    with capture_logs() as logs:
        async with serving() as (port, _), dial(port) as channel:
            code, _ = await status(channel.stream_stream(path)())
    assert code is grpc.StatusCode.UNIMPLEMENTED
    (line,) = (line for line in logs if line["event"] == "call")
    assert line["method"].startswith("/no.Service/xxx")
    assert len(line["method"]) < 300
    assert line["peer"].startswith("ipv4:127.0.0.1:")


async def test_watches_leave_room_for_checks():
    """Health answers single requests however many watches there are."""
    async with serving() as (port, _), dial(port) as channel:
        watch = channel.stream_stream(
            "/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest.SerializeToString
        )
        watches = [watch(iter([health_pb2.HealthCheckRequest()])) for _ in range(50)]
        assert all(await asyncio.gather(*(call.read() for call in watches)))
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"", timeout=20) == b"\x08\x01"
