import asyncio
import os
import signal
import socket
import urllib.request
from contextlib import asynccontextmanager

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_common import BindError, Server, ServerConfig

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Gate:
    """A service whose one call waits until the test opens it."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()

    async def wait(self, request: bytes, _context) -> bytes:
        self.entered.set()
        await self.opened.wait()
        return request

    def add(self, _servicer, server) -> None:
        handler = grpc.unary_unary_rpc_method_handler(self.wait)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test.Gate", {"Wait": handler})]
        )


@asynccontextmanager
async def running(**settings):
    """Run a server with a Gate; yield the gate, the first log line and the task of run()."""
    gate = Gate()
    server = Server(ServerConfig(**{"grpc_port": 0, "metrics_port": 0} | settings))
    server.add(gate, gate.add, name="test.Gate")
    lines: asyncio.Queue = asyncio.Queue()
    structlog.configure(processors=[lambda _logger, _level, line: lines.put_nowait(line) or ""])
    task = asyncio.create_task(server.run(database="somewhere"))
    yield gate, await lines.get(), task
    if not task.done():
        os.kill(os.getpid(), signal.SIGTERM)
    await task
    structlog.reset_defaults()


def channel_to(line) -> grpc.aio.Channel:
    """Return a channel to the server that logged `line`."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{line['grpc_port']}")


async def test_first_log_line_tells_where():
    """Port 0 takes free ports, and the first line names them and what the service announces."""
    async with running() as (_gate, line, _task):
        assert line["event"] == "serving"
        assert line["database"] == "somewhere"
        assert 0 not in (line["grpc_port"], line["metrics_port"])


@pytest.mark.parametrize("name", ["", "test.Gate", "grpc.health.v1.Health"])
async def test_health_of_every_service(name):
    """The server as a whole and each of its services are SERVING."""
    async with running() as (_gate, line, _task), channel_to(line) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert (await check(health_pb2.HealthCheckRequest(service=name))).status == SERVING


async def test_metrics_page():
    """/metrics has the process's metrics in Prometheus' format."""
    async with running() as (_gate, line, _task):
        url = f"http://127.0.0.1:{line['metrics_port']}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    assert "\nprocess_resident_memory_bytes " in page


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_signal_lets_a_call_in_flight_finish(signum):
    """After the signal health is NOT_SERVING, the call ends well, and run() returns 0."""
    async with running() as (gate, line, task), channel_to(line) as channel:
        call = channel.unary_unary("/test.Gate/Wait")(b"hello")
        await gate.entered.wait()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="test.Gate"))
        statuses = aiter(watch)
        assert (await anext(statuses)).status == SERVING
        os.kill(os.getpid(), signum)
        assert (await anext(statuses)).status == NOT_SERVING
        watch.cancel()
        gate.opened.set()
        assert await call == b"hello"
        assert await task == 0


async def test_drain_is_bounded():
    """A call that does not finish within the grace is cancelled, and run() returns."""
    async with running(drain_grace=0.1) as (gate, line, task), channel_to(line) as channel:
        call = channel.unary_unary("/test.Gate/Wait")(b"hello")
        await gate.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert await task == 0


@pytest.mark.parametrize("setting", ["grpc_port", "metrics_port"])
async def test_occupied_port_is_refused(setting):
    """A port that another program has is an error that names the variable to change."""
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        server = Server(ServerConfig(**{"grpc_port": 0, "metrics_port": 0} | {setting: port}))
        with pytest.raises(BindError, match=f"port {port} .*{setting.upper()}"):
            await server.run()


async def test_two_servers_do_not_share_a_port():
    """A second server on a served port is refused instead of taking half of its connections."""
    async with running() as (_gate, line, _task):
        second = Server(ServerConfig(grpc_port=line["grpc_port"], metrics_port=0))
        with pytest.raises(BindError, match=str(line["grpc_port"])):
            await second.run()
