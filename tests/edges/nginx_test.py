import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from user import user_service_pb2 as pb

from k8s.checks.rendered import load
from tests.edges.calls import EdgeTests
from tests.edges.limits import without_limits
from tests.edges.nginx import running_nginx
from tests.edges.servers import PAGE, running_servers, settings

LONGER_THAN_A_MINUTE = 62
"""Seconds; nginx's own timeouts are 60."""

# The loop that the fixtures of conftest.py are in.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def overlay():
    """Return the objects of the overlay nginx-ingress."""
    return without_limits(load("nginx-ingress"))


@pytest.fixture(scope="module")
def servers(overlay, tmp_path_factory):
    """Run servers with the overlay's settings, whose database may stall for longer than a minute."""
    variables = settings(overlay, tmp_path_factory.mktemp("config") / "config.yaml")
    with running_servers(**variables, DATABASE_STATEMENT_TIMEOUT="2m") as running:
        yield running


@pytest.fixture(scope="module")
def edge(overlay, servers, tmp_path_factory):
    """Run nginx as the overlay says."""
    [ingress] = [found for found in overlay if found["kind"] == "Ingress"]
    with running_nginx(tmp_path_factory.mktemp("nginx"), ingress, servers.ports) as running:
        yield running


class TestNginx(EdgeTests):
    """nginx does what every edge does."""

    died = grpc.StatusCode.UNAVAILABLE


async def test_streams_longer_than_a_minute(servers, stub, user_ids):
    """A list arrives whole, be it the server that takes a minute to begin it or the client to read it."""
    request = pb.ListUsersRequest(page_size=PAGE)

    began = asyncio.Event()

    async def read(pause):
        ids = []
        async for user in stub.ListUsers(request):
            began.set()
            ids.append(user.id)
            await asyncio.sleep(pause)
        return ids

    async with asyncio.TaskGroup() as tasks:
        slow_client = tasks.create_task(read(LONGER_THAN_A_MINUTE / PAGE))
        await began.wait()
        async with servers.stalled():
            slow_server = tasks.create_task(read(0))
            await asyncio.sleep(LONGER_THAN_A_MINUTE)
    assert slow_client.result() == slow_server.result() == user_ids


async def test_health_is_served_inside(servers):
    """The servers behind nginx have the health service that it hides."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{servers.ports[0]}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
