import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from grpc_common.client.channel import channel
from grpc_common.testing.api_server import ApiServer, endpoint_slice
from grpc_common.testing.backends import Backend


@pytest.fixture
async def api_server(tmp_path, monkeypatch):
    """A fake API server that KUBECONFIG leads to."""
    async with ApiServer.in_kubeconfig(tmp_path / "kubeconfig", monkeypatch) as server:
        yield server


@pytest.fixture
async def pods():
    """Four backends at the same port of 127.0.0.1 to 127.0.0.4, and that port."""
    async with AsyncExitStack() as stack:
        first, address = await stack.enter_async_context(Backend.serving())
        port = int(address.rpartition(":")[2])
        others = [
            (await stack.enter_async_context(Backend.serving(f"127.0.0.{number}:{port}")))[0]
            for number in (2, 3, 4)
        ]
        yield [first, *others], port


def put(api_server, port, *numbers):
    """Make the pods 127.0.0.<number> the endpoints of the Service echo."""
    addresses = [f"127.0.0.{number}" for number in numbers]
    api_server.put(endpoint_slice("echo-1", addresses, ports=[("grpc", port)]))


@asynccontextmanager
async def load(opened):
    """Call without a pause from 4 tasks; any failure of a call is one of the test."""

    async def call():
        echo = opened.unary_unary("/test.Backend/Echo")
        while True:
            await echo(b"hello", timeout=20)

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        tasks = [group.create_task(call()) for _ in range(4)]
        yield
        for task in tasks:
            task.cancel()


async def has_traffic(backend):
    """Wait for the next call; return the seconds that it took."""
    start = time.monotonic()
    backend.entered.clear()
    await backend.entered.wait()
    return time.monotonic() - start


async def has_no_traffic(backend):
    """Wait until 50 ms pass without a call."""
    while True:
        try:
            await asyncio.wait_for(has_traffic(backend), 0.05)
        except TimeoutError:
            return


@pytest.mark.parametrize(
    "target", ["///echo.default:grpc", "///echo", "//default/echo", "//echo.default.svc/"]
)
async def test_calls_are_even_over_the_pods(api_server, pods, target):
    """Each of the Service's pods has the same share of the calls."""
    backends, port = pods
    put(api_server, port, 1, 2, 3, 4)
    async with channel(f"kubernetes:{target}") as opened:
        echo = opened.unary_unary("/test.Backend/Echo")
        while not all(backend.calls for backend in backends):
            await echo(b"hello")
        before = [backend.calls for backend in backends]
        for _ in range(400):
            await echo(b"hello")
    assert [backend.calls - was for backend, was in zip(backends, before, strict=True)] == [100] * 4


async def test_pods_come_and_go_under_load(api_server, pods, record_property):
    """A pod added and removed 50 times has traffic within a second each time, and no call fails."""
    backends, port = pods
    put(api_server, port, 1, 2, 3)
    waits = []
    async with channel(f"kubernetes:///echo.default:{port}") as opened, load(opened):
        for _ in range(50):
            put(api_server, port, 1, 2, 3, 4)
            waits.append(await has_traffic(backends[3]))
            put(api_server, port, 1, 2, 3)
            await has_no_traffic(backends[3])
    record_property("seconds to traffic", sorted(waits))
    assert sorted(waits)[-3] < 1  # but for two times in which the machine may have stood still


async def test_calls_go_on_without_the_api_server(api_server, pods):
    """While the API server is away calls go where they went, and then where it says."""
    backends, port = pods
    put(api_server, port, 1, 2)
    async with channel(f"kubernetes:///echo.default:{port}") as opened, load(opened):
        assert [(await api_server.seen.get()).verb for _ in range(2)] == ["list", "watch"]
        api_server.refuse(500, times=2)
        api_server.drop_watches()
        for _ in range(2):
            await api_server.seen.get()
        await asyncio.gather(has_traffic(backends[0]), has_traffic(backends[1]))
        put(api_server, port, 3)
        await has_traffic(backends[2])
        await has_no_traffic(backends[0])
