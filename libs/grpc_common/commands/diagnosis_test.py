import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from grpc_common.commands.diagnosis import Client, examine
from grpc_common.commands.finding import DiagnosisError, OverheardEndpoints
from grpc_common.testing.backends import FedEndpoints

ALONE, WARM = 21, 20
"""The checks that each endpoint gets alone, and those that warm up the one channel."""


class CountingHealth(health.aio.HealthServicer):
    """Counts how often it was asked."""

    def __init__(self):
        super().__init__()
        self.checks = 0

    async def Check(self, request, context):  # noqa: N802 (gRPC's)
        """Answer as ever."""
        self.checks += 1
        return await super().Check(request, context)


@asynccontextmanager
async def counting():
    """Serve health on a free port; yield the count and the address."""
    server, servicer = grpc.aio.server(), CountingHealth()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("policy", "warm", "calls"),
    [("round_robin", [10, 10], [15, 15]), ("pick_first", [20, 0], [30, 0])],
)
async def test_counts_are_those_of_the_servers(policy, warm, calls):
    """What the report says of calls is what the servers have seen, behind an endpoint that is dead."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(counting()) for _ in range(2)]
        target = "ipv4:127.0.0.1:1," + ",".join(address for _, address in servers)
        report = await examine(target, Client(policy, calls=30))
    assert [each.calls for each in report.endpoints] == [0, *calls]
    for (server, _), of_warm, of_calls in zip(servers, warm, calls, strict=True):
        assert server.checks == ALONE + of_warm + of_calls
    assert report.numbers.picks == WARM + 30


async def test_the_reason_before_the_first_try_is_not_the_answer():
    """A source that says from the start that it knows nothing yet is waited for."""
    source = FedEndpoints()
    source.reason = "not yet resolved"
    overheard = OverheardEndpoints(source)
    following = asyncio.create_task(anext(overheard.watch()))
    first = asyncio.create_task(overheard.first())
    done, _ = await asyncio.wait([first], timeout=0.2)
    assert not done
    source.put(["10.0.0.1:1"])
    assert [each.address for each in await first] == ["10.0.0.1:1"]
    await following


async def test_why_a_source_finds_nothing():
    """A source that fails, says why, or has nothing ends the search with its reason."""
    failing = OverheardEndpoints(FedEndpoints(OSError("no route")))
    following = asyncio.create_task(anext(failing.watch()))
    with pytest.raises(DiagnosisError, match="no route"):
        await failing.first()
    await asyncio.wait([following])
    assert isinstance(following.exception(), OSError)
    silent = FedEndpoints()
    overheard = OverheardEndpoints(silent)
    silent.reason = "403 Forbidden"
    with pytest.raises(DiagnosisError, match="403 Forbidden"):
        await overheard.first()
    empty = OverheardEndpoints(FedEndpoints([]))
    assert await anext(empty.watch()) == []
    with pytest.raises(DiagnosisError, match="leads to no endpoint"):
        await empty.first()
