import asyncio
import copy
import socket
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager

import grpc
import pytest
import pytest_asyncio
import trustme
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing_certificates import CertificateDirectory
from k8s.checks.rendered import load
from tests.edges.servers import REPLICAS, running_servers, settings
from tests.edges.traefik import dynamic_configuration, running_traefik
from tests.programs import running_server

# The streams of a minute run while the other tests do.
pytestmark = pytest.mark.asyncio(loop_scope="module")

OVERLAYS = ("traefik", "prod")
"""Plaintext to the pods, and mutual TLS."""

PAGE = 1000
"""Users; about 600 kB."""

LONGER_THAN_A_MINUTE = 62
"""Seconds; Traefik's readTimeout is 60."""

NOBODY = "01a20dfc-c89e-76ef-b891-a3fba7c9c311"


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def streams(tmp_path_factory):
    """Begin to list users for a minute, from servers that nothing else happens to."""
    overlay, folder = load("traefik"), tmp_path_factory.mktemp("streams")
    issue_secrets(overlay, folder)
    variables = environment(overlay, folder) | {"DATABASE_STATEMENT_TIMEOUT": "2m"}
    with ExitStack() as stack:
        servers = stack.enter_context(running_servers(**variables))
        edge, stopping = (
            stack.enter_context(
                running_traefik(tmp_path_factory.mktemp(name), overlay, folder, servers.ports)
            )
            for name in ("edge", "stopping")
        )
        task = asyncio.create_task(list_for_a_minute(servers, edge, stopping))
        yield task
        task.cancel()
        await asyncio.wait([task])


async def list_for_a_minute(servers, edge, stopping):
    """List users in three ways; return the ids that there are, and those that each way brought."""
    ids = await servers.seed(PAGE)
    async with edge.channel() as channel, stopping.channel() as other, asyncio.TaskGroup() as tasks:
        slow_client = tasks.create_task(read(channel, LONGER_THAN_A_MINUTE))
        await calls_have_begun(servers, 1)
        async with servers.stalled():
            slow_server = tasks.create_task(read(channel))
            through_stop = tasks.create_task(read(other))
            await calls_have_begun(servers, 3)
            stopping.process.terminate()
            await asyncio.sleep(LONGER_THAN_A_MINUTE)
    return ids, {
        "slow client": slow_client.result(),
        "slow server": slow_server.result(),
        "Traefik stops": through_stop.result(),
    }


async def read(channel, seconds=0):
    """List a page of users and take so long for it; return their ids, or the error."""
    page = UserServiceStub(channel).ListUsers(pb.ListUsersRequest(page_size=PAGE), timeout=120)
    start, ids = time.monotonic(), []
    try:
        async for user in page:
            ids.append(user.id)
            await asyncio.sleep(start + seconds * len(ids) / PAGE - time.monotonic())
    except grpc.aio.AioRpcError as error:
        return f"{error.code()} after {len(ids)} users: {error.details()}"
    return ids


async def calls_have_begun(servers, count):
    """Wait until so many lists were begun."""
    async with asyncio.timeout(10):
        while sum(servers.calls("ListUsers").values()) < count:
            await asyncio.sleep(0.02)


def issue_secrets(overlay, folder):
    """Make the Secrets of an overlay's Certificates, each a folder; return them by name."""
    authorities = defaultdict(trustme.CA)
    specs = [each["spec"] for each in overlay if each["kind"] == "Certificate"]
    return {
        spec["secretName"]: CertificateDirectory(
            folder / spec["secretName"], authorities[spec["issuerRef"]["name"]], *spec["dnsNames"]
        )
        for spec in specs
        if not spec.get("isCA")
    }


def environment(overlay, folder):
    """Return the environment of an overlay's servers; its Secrets are in `folder`."""
    variables = settings(overlay, folder / "config.yaml")
    if "TLS_DIRECTORY" in variables:
        variables |= {"TLS_DIRECTORY": str(folder / "user-service-tls"), "HEALTH_PORT": "0"}
    return variables


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request):
    """Return the objects of each overlay."""
    return load(request.param)


@pytest.fixture(scope="module")
def secrets(overlay, tmp_path_factory):
    """Make the overlay's Secrets."""
    folder = tmp_path_factory.mktemp("secrets")
    issue_secrets(overlay, folder)
    return folder


@pytest.fixture(scope="module")
def servers(overlay, secrets):
    """Run servers with the overlay's settings."""
    with running_servers(**environment(overlay, secrets)) as running:
        yield running


@pytest.fixture(scope="module")
def edge(overlay, secrets, servers, tmp_path_factory):
    """Run Traefik as the overlay says."""
    with running_traefik(tmp_path_factory.mktemp("traefik"), overlay, secrets, servers.ports) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def channel(edge):
    """Return a channel to Traefik."""
    async with edge.channel() as channel:
        yield channel


@pytest.fixture
def stub(channel):
    """Return a stub of the service."""
    return UserServiceStub(channel)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def user_ids(servers):
    """Create a page of users."""
    return await servers.seed(PAGE)


async def get(stub, user_id, seconds=10):
    """Get a user."""
    return await stub.GetUser(pb.GetUserRequest(id=user_id), timeout=seconds)


async def create(stub, name, **options):
    """Create a user."""
    request = pb.CreateUserRequest(name=name, email=f"{name}@example.org")
    return await stub.CreateUser(request, timeout=30, **options)


async def failure(call):
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


@pytest.mark.parametrize(
    "service", ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "no.Such"]
)
async def test_other_services_are_hidden(channel, service):
    """What is not user.UserService gets its answer from Traefik."""
    error = await failure(channel.unary_unary(f"/{service}/Check")(b"", timeout=10))
    assert (error.code(), "404" in error.details()) == (grpc.StatusCode.UNIMPLEMENTED, True)


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
    # Traefik says HTTP 500.
    assert error.code() is grpc.StatusCode.UNKNOWN


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


async def test_unreachable_server(overlay, secrets, servers, user_ids, tmp_path):
    """A server whose machine is gone costs a call some seconds, not its deadline."""
    with (
        unreachable() as port,
        running_traefik(tmp_path, overlay, secrets, [port, *servers.ports[1:]]) as edge,
    ):
        async with edge.channel() as channel:
            for _ in range(REPLICAS):
                assert (await get(UserServiceStub(channel), user_ids[0])).id == user_ids[0]


@contextmanager
def unreachable():
    """Yield a port to which no connection comes about, and none is refused."""
    with (
        # A backlog of 0 has room for one connection; what comes then is dropped.
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        yield listener.getsockname()[1]


async def test_silent_server(tmp_path):
    """A server that says nothing any more is given up before the call's deadline."""
    overlay = load("traefik")
    issue_secrets(overlay, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with running_traefik(tmp_path, overlay, tmp_path, [port]) as edge:
            async with edge.channel() as channel:
                error = await failure(get(UserServiceStub(channel), NOBODY, seconds=25))
    assert error.code() is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("nothing", grpc.StatusCode.NOT_FOUND),
        ("authority", grpc.StatusCode.UNKNOWN),
        ("name", grpc.StatusCode.UNKNOWN),
    ],
)
async def test_server_of_somebody_else(wrong, code, tmp_path):
    """With mutual TLS a server whose certificate has another authority or name gets no call."""
    overlay = load("prod")
    ours = issue_secrets(overlay, tmp_path)["user-service-tls"]
    authority = trustme.CA() if wrong == "authority" else ours.ca
    names = ["other-service"] if wrong == "name" else ours.identities
    theirs = CertificateDirectory(tmp_path / "theirs", authority, *names)
    theirs.replace(theirs.issue() | {"ca.crt": ours.ca.cert_pem.bytes()})
    variables = environment(overlay, tmp_path) | {"TLS_DIRECTORY": str(theirs.path)}
    with (
        running_server(tmp_path / "users", **variables) as server,
        running_traefik(tmp_path, overlay, tmp_path, [server.port("grpc_port")]) as edge,
    ):
        async with edge.channel() as channel:
            error = await failure(get(UserServiceStub(channel), NOBODY))
    assert error.code() is code


@pytest.mark.parametrize("kind", ["IngressRoute", "Middleware", "ServersTransport"])
async def test_field_that_is_not_translated(kind, tmp_path):
    """A field that these tests would pass over is an error."""
    objects = copy.deepcopy(load("traefik"))
    [found] = [each for each in objects if each["kind"] == kind]
    found["spec"]["surprise"] = True
    with pytest.raises(ValueError, match="surprise: this test does not translate it"):
        dynamic_configuration(objects, tmp_path, [1])


async def test_streams_longer_than_a_minute(streams):
    """A list arrives whole, whether its server or its client takes a minute, or Traefik is told to stop."""
    ids, received = await streams
    assert received == dict.fromkeys(received, ids)
