"""Resources of a service: open before it serves, closed after its drain."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_common import Server, StartError
from grpc_common.testing import configure

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def new_server() -> Server:
    """Return a server that serves health alone."""
    return Server(configure())


@contextmanager
def free_port():
    """Yield a port that is free when the block has ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def resource(name, log):
    """Return a resource that notes its begin and its end."""

    @asynccontextmanager
    async def opened():
        log.append(f"{name} opens")
        try:
            yield
        finally:
            log.append(f"{name} closes")

    return opened()


async def test_resources_surround_the_serving():
    """They are open while calls are taken, and close in the opposite order."""
    log = []
    server = new_server()
    server.use(resource("pool", log))
    server.use(resource("cache", log))
    async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
        log.append("serves")
    assert log == ["pool opens", "cache opens", "serves", "cache closes", "pool closes"]


async def test_no_call_is_taken_before_they_are_open():
    """A call that comes while a pool opens waits for it."""
    opening, go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow():
        opening.set()
        await go_on.wait()
        yield

    server = new_server()
    server.use(slow())
    ended = asyncio.Event()

    async def serve():
        async with server.serving():
            await ended.wait()

    task = asyncio.create_task(serve())
    await opening.wait()
    assert not task.done()
    go_on.set()
    ended.set()
    await task


async def health(port, name):
    """Return what health says of a name."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return (await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)).status


async def test_health_says_not_serving_until_they_are_open():
    """Probes of the health port keep callers away while a service warms up, and let the process live."""
    opening, go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def warm_up():
        opening.set()
        await go_on.wait()
        yield

    with free_port() as health_port:
        server = Server(configure(HEALTH_PORT=str(health_port)))
    server.use(warm_up())
    async with AsyncExitStack() as stack:
        starting = asyncio.create_task(stack.enter_async_context(server.serving()))
        await opening.wait()
        before = [await health(health_port, name) for name in ("", "readiness", "liveness")]
        go_on.set()
        await starting
        after = [await health(health_port, name) for name in ("", "readiness", "liveness")]
    assert before == [NOT_SERVING, NOT_SERVING, SERVING]
    assert after == [SERVING, SERVING, SERVING]


@pytest.mark.parametrize("wrong", [suppress(ValueError), lambda: None, None])
async def test_what_is_no_resource_is_refused(wrong):
    """The line that uses it raises, with what would be right."""
    with pytest.raises(TypeError, match="asynchronous context manager"):
        new_server().use(wrong)


async def test_a_resource_is_used_once_and_before_the_server_runs():
    """Twice the same, or one that would never open, is refused."""
    server = new_server()
    pool = resource("pool", [])
    server.use(pool)
    with pytest.raises(ValueError, match="already"):
        server.use(pool)
    async with server.serving():
        with pytest.raises(StartError, match="too late"):
            server.use(resource("late", []))


async def test_a_resource_that_does_not_open_keeps_the_server_from_starting():
    """What was open before it is closed, and its exception comes out."""
    log = []

    @asynccontextmanager
    async def broken():
        raise ConnectionError("no database")
        yield

    server = new_server()
    server.use(resource("pool", log))
    server.use(broken())
    with pytest.raises(ConnectionError):
        async with server.serving():
            pytest.fail("it serves")
    assert log == ["pool opens", "pool closes"]


PROGRAM = """
import asyncio, sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
import grpc_common

@asynccontextmanager
async def pool():
    print("opening", flush=True)
    try:
        if sys.argv[1] == "slow":
            await asyncio.Event().wait()
        if sys.argv[1] == "broken":
            raise grpc_common.StartError("the database is not there")
        yield
    finally:
        print("closed", flush=True)

async def serve(config):
    server = grpc_common.Server(config)
    server.use(pool())
    return await server.run()

grpc_common.command(serve, grpc_common.ServerConfig)([])
"""


def start(how: str) -> subprocess.Popen[str]:
    """Start a server as a process."""
    ours = {"GRPC_PORT": "0", "METRICS_ENABLED": "false", "DRAIN_DELAY": "0s"}
    environ = {**os.environ, **ours, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), how]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_resource_opens(signum):
    """The process ends in order, with what it has opened closed."""
    with start("slow") as server:
        assert server.stdout.readline() == "opening\n"
        server.send_signal(signum)
        out, err = server.communicate(timeout=30)
    assert (server.returncode, out) == (0, "closed\n"), err
    assert "Traceback" not in err


def test_a_start_error_of_a_resource():
    """The operator reads its text, and the exit code is 1."""
    with start("broken") as server:
        _, err = server.communicate(timeout=30)
    assert server.returncode == 1
    assert "the database is not there" in err
    assert "Traceback" not in err


async def test_resources_are_open_during_the_drain():
    """A call that the drain waits for still has them."""
    log = []
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request, _context):
        entered.set()
        await go_on.wait()
        log.append("answers")
        return request

    server = Server(configure())
    server.use(resource("pool", log))
    methods = {"Hold": grpc.unary_unary_rpc_method_handler(hold)}
    generic = grpc.method_handlers_generic_handler("test.Hold", methods)
    server.add(None, lambda _none, it: it.add_generic_rpc_handlers([generic]))
    async with server.serving() as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        answer = asyncio.ensure_future(channel.unary_unary("/test.Hold/Hold")(b"1"))
        await entered.wait()
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    assert await answer == b"1"
    await channel.close()
    assert log == ["pool opens", "answers", "pool closes"]
