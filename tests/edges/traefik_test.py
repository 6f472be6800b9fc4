import asyncio
import copy
import socket
import time
from contextlib import ExitStack, contextmanager

import grpc
import pytest
import pytest_asyncio
import trustme
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.rendered import load
from tests.edges.calls import EdgeTests, failure, get
from tests.edges.limits import without_limits
from tests.edges.secrets import SCOPES, Issuer, environment, issue_secrets
from tests.edges.servers import PAGE, REPLICAS, running_servers
from tests.edges.traefik import dynamic_configuration, running_traefik
from tests.programs import PATIENCE, running_server

# The streams of a minute run while the other tests do.
pytestmark = pytest.mark.asyncio(loop_scope="module")

OVERLAYS = ("traefik", "prod")
"""Plaintext to the pods, and mutual TLS."""

LONGER_THAN_A_MINUTE = 62
"""Seconds; Traefik's readTimeout is 60."""

NOBODY = "01a20dfc-c89e-76ef-b891-a3fba7c9c311"


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def streams(tmp_path_factory):
    """Begin to list users for a minute, from servers that nothing else happens to."""
    overlay, folder = without_limits(load("traefik")), tmp_path_factory.mktemp("streams")
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
    async with asyncio.timeout(PATIENCE):  # other tests block the loop
        while sum(servers.calls("ListUsers").values()) < count:
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request):
    """Return the objects of each overlay."""
    return without_limits(load(request.param))


@pytest.fixture(scope="module")
def secrets(overlay, tmp_path_factory):
    """Make the overlay's Secrets."""
    folder = tmp_path_factory.mktemp("secrets")
    issue_secrets(overlay, folder)
    return folder


@pytest.fixture(scope="module")
def issuer(overlay, secrets):
    """Return the issuer of the overlay's tokens, None if its servers take none."""
    return Issuer(overlay, secrets) if takes_tokens(overlay) else None


def takes_tokens(overlay):
    """Return whether servers are told of an issuer."""
    return any("issuer:" in str(each) for each in overlay if each["kind"] == "ConfigMap")


@pytest.fixture(scope="module")
def servers(overlay, secrets, issuer):
    """Run servers with the overlay's settings."""
    variables = environment(overlay, secrets) | (issuer.variables if issuer else {})
    with running_servers(**variables) as running:
        yield running


@pytest.fixture(scope="module")
def edge(overlay, secrets, issuer, servers, tmp_path_factory):
    """Run Traefik as the overlay says, for a client that may call every method."""
    with running_traefik(tmp_path_factory.mktemp("traefik"), overlay, secrets, servers.ports) as running:
        running.token = issuer and issuer.token(*SCOPES)
        yield running


class TestTraefik(EdgeTests):
    """Traefik does what every edge does."""

    died = grpc.StatusCode.UNKNOWN  # for HTTP 500


async def test_unreachable_server(overlay, secrets, issuer, servers, tmp_path):
    """A server whose machine is gone costs a call some seconds, not its deadline."""
    with (
        unreachable() as port,
        running_traefik(tmp_path, overlay, secrets, [port, *servers.ports[1:]]) as edge,
    ):
        edge.token = issuer and issuer.token(*SCOPES)
        async with edge.channel() as channel:
            for _ in range(REPLICAS):
                error = await failure(get(UserServiceStub(channel), NOBODY))
                assert error.code() is grpc.StatusCode.NOT_FOUND


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
                error = await failure(get(UserServiceStub(channel), NOBODY))
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
    issuer = Issuer(overlay, tmp_path)
    variables = environment(overlay, tmp_path) | issuer.variables | {"TLS_DIRECTORY": str(theirs.path)}
    with (
        running_server(tmp_path / "users", **variables) as server,
        running_traefik(tmp_path, overlay, tmp_path, [server.port("grpc_port")]) as edge,
    ):
        edge.token = issuer.token("GetUser")
        async with edge.channel() as channel:
            error = await failure(get(UserServiceStub(channel), NOBODY))
    assert error.code() is code


@pytest.mark.parametrize("kind", ["IngressRoute", "Middleware", "ServersTransport"])
async def test_field_that_is_not_translated(kind, tmp_path):
    """A field that these tests would pass over is an error."""
    objects = copy.deepcopy(load("traefik"))
    found = next(each for each in objects if each["kind"] == kind)
    found["spec"]["surprise"] = True
    with pytest.raises(ValueError, match="surprise: this test does not translate it"):
        dynamic_configuration(objects, tmp_path, [1])


async def test_streams_longer_than_a_minute(streams):
    """A list arrives whole, whether its server or its client takes a minute, or Traefik is told to stop."""
    ids, received = await streams
    assert received == dict.fromkeys(received, ids)
