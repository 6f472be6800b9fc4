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

from grpc_common import BindError, Server, ServerConfig, load

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


def configured(**environ: str) -> ServerConfig:
    """Return a configuration with free ports."""
    return load(ServerConfig, environ={"GRPC_PORT": "0", "METRICS_PORT": "0", "DRAIN_DELAY": "0s"} | environ)


@asynccontextmanager
async def running(**environ: str):
    """Run a server with a Gate; yield the gate, the first log line and the task of run().

    Lines about the event loop, which a busy machine may hold up, are left out.
    """
    gate = Gate()
    server = Server(configured(**environ))
    server.add(gate, gate.add)
    lines: asyncio.Queue = asyncio.Queue()

    def keep(_logger, _level, line) -> str:
        if not line["event"].startswith("event loop"):
            lines.put_nowait(line)
        return ""

    structlog.configure(processors=[keep])
    task = asyncio.create_task(server.run(database="somewhere"))
    try:
        yield gate, await lines.get(), task
    finally:
        structlog.reset_defaults()
        gate.opened.set()
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


def channel_to(line, port: str = "grpc_port") -> grpc.aio.Channel:
    """Return a channel to the server that logged `line`."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{line[port]}")


async def health(channel: grpc.aio.Channel, name: str) -> int:
    """Ask a server for its health."""
    request = health_pb2.HealthCheckRequest(service=name)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def test_first_log_line_tells_where():
    """Port 0 takes free ports, and the first line names them and what the service announces."""
    async with running() as (_gate, line, _task):
        assert line["event"] == "serving"
        assert line["database"] == "somewhere"
        assert 0 not in (line["grpc_port"], line["metrics_port"])
        assert "health_port" not in line


@pytest.mark.parametrize("name", ["", "test.Gate", "grpc.health.v1.Health", "liveness", "readiness"])
async def test_health_of_every_service(name):
    """The server as a whole, each of its services, liveness and readiness are SERVING."""
    async with running() as (_gate, line, _task), channel_to(line) as channel:
        assert await health(channel, name) == SERVING


async def test_health_port_serves_health_and_nothing_else():
    """The port for probes answers them, and is no way around the service's own port."""
    async with running(HEALTH_PORT="0") as (_gate, line, _task):
        async with channel_to(line, "health_port") as channel:
            assert await health(channel, "liveness") == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test.Gate/Wait")(b"hello")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_is_a_setting():
    """A server without reflection does not tell what it serves."""
    async with running(REFLECTION="false") as (_gate, line, _task), channel_to(line) as channel:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_stream(method)().read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def page_of_metrics(line) -> str:
    """Return what Prometheus would read."""
    url = f"http://127.0.0.1:{line['metrics_port']}/metrics"
    return await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())


async def test_metrics_page():
    """/metrics has the process's metrics, those of the calls, and the connections."""
    async with running() as (gate, line, _task), channel_to(line) as channel:
        gate.opened.set()
        await channel.unary_unary("/test.Gate/Wait")(b"hello")
        page = await page_of_metrics(line)
    labels = 'grpc_method="Wait",grpc_service="test.Gate",grpc_type="unary"'
    assert "\nprocess_resident_memory_bytes " in page
    assert f"grpc_server_started_total{{{labels}}} 1.0\n" in page
    assert f"grpc_server_msg_received_total{{{labels}}} 1.0\n" in page
    assert f'grpc_server_connections{{port="{line["grpc_port"]}"}} 1.0\n' in page


async def test_metrics_are_a_setting():
    """A server without metrics opens no port for them."""
    async with running(METRICS_ENABLED="false") as (_gate, line, _task):
        assert "metrics_port" not in line


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
        assert await health(channel, "liveness") == SERVING
        gate.opened.set()
        assert await call == b"hello"
        # The watch is still open: it must not hold the server up.
        assert await task == 0
        assert await watch.code() is grpc.StatusCode.UNAVAILABLE


async def test_draining_server_takes_no_new_connections():
    """Once the delay is over a new client is refused at once, while older connections serve on."""
    async with running() as (gate, line, task), channel_to(line) as channel:
        call = channel.unary_unary("/test.Gate/Wait")(b"hello")
        await gate.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            while await accepts(line["grpc_port"]):
                await asyncio.sleep(0.01)
        second = channel.unary_unary("/test.Gate/Wait")(b"again")
        gate.opened.set()
        assert await asyncio.gather(call, second) == [b"hello", b"again"]
        assert await task == 0


async def accepts(port: int) -> bool:
    """Return whether a port takes a connection."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def test_drain_is_bounded():
    """A call that does not finish within the grace is cancelled, and run() returns."""
    async with running(DRAIN_GRACE="100ms") as (gate, line, task), channel_to(line) as channel:
        call = channel.unary_unary("/test.Gate/Wait")(b"hello")
        await gate.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert await task == 0


@pytest.mark.parametrize("variable", ["GRPC_PORT", "METRICS_PORT", "HEALTH_PORT"])
async def test_occupied_port_is_refused(variable):
    """A port that another program has is an error that names the variable to change."""
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        server = Server(configured(**{variable: str(port)}))
        with pytest.raises(BindError, match=f"port {port} .*{variable}"):
            async with server.serving():
                pass


async def test_two_servers_do_not_share_a_port():
    """A second server on a served port is refused instead of taking half of its connections."""
    async with running() as (_gate, line, _task):
        second = Server(configured(GRPC_PORT=str(line["grpc_port"])))
        with pytest.raises(BindError, match=str(line["grpc_port"])):
            async with second.serving():
                pass
