import asyncio
import os
import subprocess
import threading
import time
from contextlib import asynccontextmanager

import grpc
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from grpc_common.server.server import Server
from grpc_common.testing import configure

LAG = "grpc_server_event_loop_lag_seconds"


def block(seconds):
    """Do what no coroutine should."""
    time.sleep(seconds)


@asynccontextmanager
async def serving(handler, registry=None, **environ):
    """Serve `handler`; yield the method to call."""
    ours = {"METRICS_ENABLED": "true", "METRICS_PORT": "0"}
    server = Server(configure(**ours | environ), registry=registry)
    methods = {"Call": grpc.unary_unary_rpc_method_handler(handler)}
    handlers = [grpc.method_handlers_generic_handler("test.Loop", methods)]
    server.add(None, lambda _servicer, to: to.add_generic_rpc_handlers(handlers))
    async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary("/test.Loop/Call")


async def blocking(request, _context):
    """Block the loop for as many seconds as the request says."""
    block(float(request))
    return b""


def events(logs):
    """Return the lines of the log that are about the loop."""
    return [line for line in logs if line["event"].startswith("event loop")]


async def turned(registry):
    """Wait until the loop was measured once more."""
    before = registry.get_sample_value(f"{LAG}_count")
    async with asyncio.timeout(10):
        while registry.get_sample_value(f"{LAG}_count") == before:
            await asyncio.sleep(0.01)


async def test_handler_that_blocks_the_loop_is_named():
    """The log tells once where the loop hangs, then for how long it did, and the histogram has it."""
    registry = CollectorRegistry()
    with capture_logs() as logs:
        async with serving(blocking, registry) as call:
            await call(b"1.5", timeout=10)
            await turned(registry)
    blocked, again = events(logs)
    assert blocked["event"] == "event loop blocked"
    assert "loop_lag_test.py:" in blocked["where"]
    assert blocked["where"].endswith(" block")
    assert blocked["frames"][1].endswith(" blocking")
    assert again["event"] == "event loop runs again"
    assert 1.4 < again["seconds"] < 5
    assert registry.get_sample_value(f"{LAG}_sum") > 1.2
    late = registry.get_sample_value(f"{LAG}_count") - registry.get_sample_value(
        f"{LAG}_bucket", {"le": "1.0"}
    )
    assert late == 1


async def test_each_blockage_is_told():
    """A second blockage has lines of its own."""
    registry = CollectorRegistry()
    with capture_logs() as logs:
        async with serving(blocking, registry) as call:
            for _ in range(2):
                await call(b"1.5", timeout=10)
                await turned(registry)
    assert [line["event"] for line in events(logs)] == ["event loop blocked", "event loop runs again"] * 2


async def test_loop_is_watched_without_metrics():
    """With metrics off the log tells all the same."""
    with capture_logs() as logs:
        async with serving(blocking, METRICS_ENABLED="false") as call:
            await call(b"1.5", timeout=10)
            async with asyncio.timeout(10):
                while len(events(logs)) < 2:
                    await asyncio.sleep(0.01)
    assert [line["event"] for line in events(logs)] == ["event loop blocked", "event loop runs again"]


async def test_servers_of_one_loop_tell_a_blockage_once():
    """Each registry has the lag, the log has one line, and the end of one server leaves the other's watch."""
    first, second = CollectorRegistry(), CollectorRegistry()
    with capture_logs() as logs:
        async with serving(blocking, first) as call:
            async with serving(blocking, second):
                await call(b"1.5", timeout=10)
                await turned(first)
                assert second.get_sample_value(f"{LAG}_sum") > 0.7
            await turned(first)
    assert len(events(logs)) == 2


async def test_handler_that_waits_or_runs_in_a_thread_blocks_nothing():
    """Neither await nor a plain function, which has a thread, is a blockage."""

    async def waiting(_request, _context):
        await asyncio.sleep(1)
        return b""

    def plain(_request, _context):
        block(1)
        return b""

    for handler in (waiting, plain):
        registry = CollectorRegistry()
        with capture_logs() as logs:
            async with serving(handler, registry) as call:
                await call(b"", timeout=10)
                await turned(registry)
        assert events(logs) == []


async def test_process_that_stood_still_has_no_blocked_loop():
    """After a process was stopped, as a debugger or a busy machine does, no code is blamed."""
    with capture_logs() as logs:
        async with serving(blocking):
            script = f"sleep 0.3; kill -STOP {os.getpid()}; sleep 1.5; kill -CONT {os.getpid()}"
            await asyncio.to_thread(subprocess.run, ["sh", "-c", script], check=True)
            await asyncio.sleep(0.6)
    assert events(logs) == []


async def test_no_thread_is_left():
    """The watch ends with the last server, even while nothing turns the loop."""
    async with serving(blocking):
        assert "event loop watch" in [thread.name for thread in threading.enumerate()]
    assert "event loop watch" not in [thread.name for thread in threading.enumerate()]
