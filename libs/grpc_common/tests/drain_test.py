import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import grpc
import pytest

from grpc_common import Server
from grpc_common.testing import configure

SERVERS = 3
STOPS = 100
LOAD = 24
"""Concurrent callers: as many as keep two cores busy."""


seen: set[bytes] = set()
"""The requests that came to a servicer."""


async def echo(request: bytes, _context) -> bytes:
    """Answer after a time in which other calls arrive."""
    seen.add(request)
    await asyncio.sleep(0.002)
    return request


async def count(request: bytes, _context):
    """Stream a hundred messages."""
    seen.add(request)
    for number in range(100):
        yield str(number).encode()


def add(_servicer, server) -> None:
    """Register test.Echo."""
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


@asynccontextmanager
async def serving(**environ: str):
    """Serve test.Echo; drain when the block ends."""
    server = Server(configure(**{"DRAIN_GRACE": "20s"} | environ))
    server.add(None, add)
    async with server.serving() as port:
        yield port


async def call_until(stopped: asyncio.Event, channel: grpc.aio.Channel, outcomes: Counter) -> None:
    """Call without a pause, now and then a method that streams, and count how the calls end."""
    while not stopped.is_set():
        request = uuid4().bytes
        try:
            if outcomes.total() % 50:
                await channel.unary_unary("/test.Echo/Echo")(request, timeout=10)
            else:
                async for _ in channel.unary_stream("/test.Echo/Count")(request, timeout=10):
                    pass
            outcomes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            outcomes[error.code().name, error.details(), "seen" if request in seen else "unseen"] += 1


@asynccontextmanager
async def under_load(ports: list[int], service_config: str):
    """Load the servers on `ports` through a channel without a retry policy; yield the outcomes so far."""
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    options = [
        ("grpc.service_config", service_config),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 100),
    ]
    outcomes: Counter = Counter()
    stopped = asyncio.Event()
    async with grpc.aio.insecure_channel(target, options=options) as channel, asyncio.TaskGroup() as tasks:
        for _ in range(LOAD):
            tasks.create_task(call_until(stopped, channel, outcomes))
        try:
            async with asyncio.timeout(10):
                while not outcomes["OK"]:
                    await asyncio.sleep(0.01)
            yield outcomes
        finally:
            stopped.set()


# Clients that follow health leave at once, so the connections may live as long as they do in production.
# The others leave when their connection is too old; the shorter its life, the shorter the test.
@pytest.mark.parametrize(
    ("service_config", "age"),
    [
        (
            '{"loadBalancingConfig":[{"round_robin":{}}],"healthCheckConfig":{"serviceName":"test.Echo"}}',
            "30s",
        ),
        ('{"loadBalancingConfig":[{"round_robin":{}}]}', "200ms"),
    ],
    ids=["client follows health", "client ignores health"],
)
async def test_servers_that_stop_under_load_fail_no_call(service_config, age):
    """Servers stop and start in turn under full load, and a client without a retry policy loses no call."""
    async with AsyncExitStack() as last:
        stacks = [await last.enter_async_context(AsyncExitStack()) for _ in range(SERVERS)]
        start = {"KEEPALIVE_MAX_CONNECTION_AGE": age}
        ports = [await stack.enter_async_context(serving(**start)) for stack in stacks]
        async with under_load(ports, service_config) as outcomes:
            for stop in range(STOPS):
                before = outcomes["OK"]
                stack, port = stacks[stop % SERVERS], ports[stop % SERVERS]
                await stack.aclose()
                await stack.enter_async_context(serving(GRPC_PORT=str(port), **start))
                async with asyncio.timeout(20):
                    while outcomes["OK"] == before:
                        await asyncio.sleep(0.01)
    late = sum(count for outcome, count in outcomes.items() if came_too_late(outcome))
    print(f"{STOPS} stops, {outcomes.total()} calls, {late} sent to a connection that had become too old")
    assert outcomes["OK"] + late == outcomes.total(), outcomes
    # On a machine that stands still now and then: those of one connection. See connection_reset_test.
    assert late <= LOAD


def came_too_late(outcome: str | tuple[str, str, str]) -> bool:
    """Return whether a call ended as those do that C-core sends behind its leave from a connection."""
    _, details, found = outcome if outcome != "OK" else ("", "", "")
    return found == "unseen" and ("max_age" in details or "Broken pipe" in details)
