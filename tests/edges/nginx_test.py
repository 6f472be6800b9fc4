import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from k8s.checks.rendered import load
from tests.edges.nginx import running_nginx
from tests.edges.servers import REPLICAS, running_servers, settings

LONGER_THAN_A_MINUTE = 62
"""Seconds; nginx's own timeouts are 60."""

PAGE = 1000


@pytest.fixture(scope="module")
def overlay():
    """Return the objects of the overlay nginx-ingress."""
    return load("nginx-ingress")


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


@pytest.fixture
async def channel(edge):
    """Return a channel to nginx."""
    async with edge.channel() as channel:
        yield channel


@pytest.fixture
def stub(channel):
    """Return a stub of the service."""
    return UserServiceStub(channel)


@pytest.fixture(scope="module")
def user_ids(servers):
    """Create a page of users."""
    return asyncio.run(servers.seed(PAGE))


async def get(stub, user_id) -> pb.User:
    """Get a user."""
    return await stub.GetUser(pb.GetUserRequest(id=user_id), timeout=10)


async def create(stub, name, **options) -> pb.User:
    """Create a user."""
    request = pb.CreateUserRequest(name=name, email=f"{name}@example.org")
    return await stub.CreateUser(request, timeout=30, **options)


async def failure(call) -> grpc.aio.AioRpcError:
    """Await a call that must fail; return how it did."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_calls_are_spread(servers, stub, user_ids):
    """Over one connection of a client each server gets its share of the calls."""
    before = servers.calls("GetUser")
    for _ in range(10 * REPLICAS):
        assert (await get(stub, user_ids[0])).id == user_ids[0]
    after = servers.calls("GetUser")
    assert {number: after[number] - before[number] for number in after} == dict.fromkeys(range(REPLICAS), 10)


async def test_metadata_passes(stub, user_ids):
    """The idempotency key comes to the server, and the page token to the client."""
    key = (("idempotency-key", "ada"),)
    assert await create(stub, "ada", metadata=key) == await create(stub, "ada", metadata=key)
    page = stub.ListUsers(pb.ListUsersRequest(page_size=10), timeout=10)
    assert [user.id async for user in page] == user_ids[:10]
    assert "next-page-token" in dict(await page.trailing_metadata())


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


@pytest.mark.parametrize(
    "service", ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "no.Such"]
)
async def test_other_services_are_hidden(channel, service):
    """What is not user.UserService gets its answer from nginx."""
    error = await failure(channel.unary_unary(f"/{service}/Check")(b"", timeout=10))
    assert (error.code(), "404" in error.details()) == (grpc.StatusCode.UNIMPLEMENTED, True)


async def test_health_is_served_inside(servers):
    """The servers behind nginx have the health service that it hides."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{servers.ports[0]}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_unknown_method(channel):
    """A method that user.UserService does not have gets its answer from a server."""
    error = await failure(channel.unary_unary("/user.UserService/NoSuch")(b"", timeout=10))
    assert (error.code(), "404" in error.details()) == (grpc.StatusCode.UNIMPLEMENTED, False)


@pytest.mark.parametrize(
    ("size", "code"),
    [(2, grpc.StatusCode.INVALID_ARGUMENT), (11, grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
async def test_large_requests(stub, size, code):
    """It is the server that refuses a request for its size in MiB, with its own status."""
    error = await failure(get(stub, "x" * (size << 20)))
    assert error.code() is code


async def test_create_is_not_repeated(servers, stub):
    """A create that dies with its server is not sent to another one, and the client is told."""
    before = servers.calls("CreateUser")
    async with servers.stalled():
        call = asyncio.create_task(create(stub, "bob"))
        async with asyncio.timeout(10):
            while (reached := servers.calls("CreateUser")) == before:
                await asyncio.sleep(0.01)
        [dead] = [number for number in reached if reached[number] > before[number]]
        servers.kill(dead)
        error = await failure(call)
        del before[dead]
        assert servers.calls("CreateUser") == before
    servers.start(dead)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_one_server_is_dead(servers, stub, user_ids):
    """With one server gone no call fails; once it is back it gets calls again."""
    servers.kill(0)
    for number in range(10 * REPLICAS):
        await get(stub, user_ids[0])
        await create(stub, f"carol{number}")
    servers.start(0)
    async with asyncio.timeout(10):
        while not servers.calls("GetUser")[0]:
            await get(stub, user_ids[0])
