import asyncio
import copy
import time
from contextlib import asynccontextmanager

import grpc
import pytest
import pytest_asyncio
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from grpc_common.testing.tokens import TokenIssuer
from k8s.checks.rendered import load
from tests.edges.envoy import control_planes
from tests.edges.published import EDGES, published
from tests.edges.secrets import SCOPES
from tests.programs import PATIENCE

# One edge for the tests of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")

CODE = grpc.StatusCode
NOBODY = "01a20dfc-c89e-76ef-b891-a3fba7c9c311"
MTLS = ("prod", "staging")


async def call(stub, method, token=None):
    """Call a method; return its status. Users are created once, and nobody is found: both got through."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    if method == "ListUsers":
        page = stub.ListUsers(pb.ListUsersRequest(), metadata=metadata, timeout=25)
        return await page.code()
    request = {
        "GetUser": pb.GetUserRequest(id=NOBODY),
        "CreateUser": pb.CreateUserRequest(name="Ada", email="ada@example.org"),
    }[method]
    code = await getattr(stub, method)(request, metadata=metadata, timeout=25).code()
    return CODE.OK if code in {CODE.NOT_FOUND, CODE.ALREADY_EXISTS} else code


CREDENTIALS = {
    # What a caller shows: the token for a method, and the status.
    "none": (lambda _issuer, _method: None, CODE.UNAUTHENTICATED),
    "no token at all": (lambda _issuer, _method: "nonsense", CODE.PERMISSION_DENIED),
    "signed by somebody else": (
        lambda _issuer, _method: TokenIssuer().token(iss="https://issuer.example.com"),
        CODE.PERMISSION_DENIED,
    ),
    "expired": (
        lambda issuer, method: issuer.token(method, exp=time.time() - 3600),
        CODE.PERMISSION_DENIED,
    ),
    "of another issuer": (
        lambda issuer, method: issuer.token(method, iss="https://other.example.com"),
        CODE.PERMISSION_DENIED,
    ),
    "for another audience": (
        lambda issuer, method: issuer.token(method, aud="https://other.example.com"),
        CODE.PERMISSION_DENIED,
    ),
    "for the other methods": (
        lambda issuer, method: issuer.token(*(SCOPES.keys() - {method})),
        CODE.PERMISSION_DENIED,
    ),
    "right": (lambda issuer, method: issuer.token(method), CODE.OK),
}


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """Return the control planes of those edges that have one."""
    with control_planes(tmp_path_factory.mktemp("planes")) as planes:
        yield planes


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=EDGES)
async def edge(request, tmp_path_factory, planes):
    """Run each edge in front of a server that asks who calls."""
    folder = tmp_path_factory.mktemp(request.param)
    async with published(request.param, folder, planes, authentication=True) as running:
        yield running


@pytest.mark.parametrize("method", SCOPES)
@pytest.mark.parametrize("credential", CREDENTIALS)
async def test_credentials(edge, credential, method):
    """Through each edge a method is for those alone whose token is good for it."""
    make, code = CREDENTIALS[credential]
    assert await call(UserServiceStub(edge.channel), method, make(edge.issuer, method)) is code


@pytest.mark.parametrize("name", [name for name in EDGES if name not in MTLS])
async def test_a_trial_is_open(name, tmp_path, planes):
    """Without authentication a trial lets everybody call everything, as its README says."""
    async with published(name, tmp_path, planes, authentication=False) as edge:
        stub = UserServiceStub(edge.channel)
        assert [await call(stub, method) for method in SCOPES] == [CODE.OK] * len(SCOPES)


@pytest.mark.parametrize("name", MTLS)
async def test_colleagues_in_the_cluster(name, tmp_path, planes):
    """A colleague needs no token; who has the edge's certificate, and no token, is nobody."""
    async with published(name, tmp_path, planes, authentication=True) as edge:

        async def codes(secret):
            tls = grpc_common.ClientTLS(edge.secrets / secret, "user-service")
            async with grpc_common.channel(edge.server.target, tls=tls) as channel:
                return {await call(UserServiceStub(channel), method) for method in SCOPES}

        assert await codes("user-service-client-tls") == {CODE.OK}
        assert await codes("user-service-edge-client-tls") == {CODE.UNAUTHENTICATED}


@pytest.mark.parametrize("secrets", [[], ["user-service-edge-tls"]], ids=["none", "of another authority"])
async def test_edge_without_its_certificate(secrets, tmp_path, planes):
    """An edge that shows the servers no certificate of the authority gets nobody in, with whatever token."""
    objects = copy.deepcopy(load("prod"))
    [transport] = [each for each in objects if each["kind"] == "ServersTransport"]
    transport["spec"]["certificatesSecrets"] = secrets
    async with published("prod", tmp_path, planes, authentication=True, objects=objects) as edge:
        stub = UserServiceStub(edge.channel)
        codes = {await call(stub, method, edge.issuer.token(*SCOPES)) for method in SCOPES}
        assert codes <= {CODE.UNKNOWN, CODE.UNAVAILABLE}  # for Traefik's HTTP 500 or 502


CALLS = 600
"""At least, and more until one is refused: a slow machine may make so few in a second that none is."""

AT_A_TIME = 50
"""Fewer than nginx lets one client have under way."""


async def flood(get):
    """Call without a pause until a call was refused for that; return the codes."""
    codes = []

    async def repeat():
        while len(codes) < CALLS or CODE.UNAVAILABLE not in codes:
            codes.append(await get(len(codes)))

    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        for _ in range(AT_A_TIME):
            tasks.create_task(repeat())
    return codes


@pytest.mark.parametrize("name", EDGES)
async def test_rate_limit(name, tmp_path, planes):
    """Who calls too often is UNAVAILABLE at the edge, though the token is right; another address is not."""
    async with (
        published(name, tmp_path, planes, authentication=name in MTLS) as edge,
        from_another_address(edge.port) as port,
        edge.channel_to(port) as other,
    ):
        token = edge.issuer and edge.issuer.token("GetUser")
        stub = UserServiceStub(edge.channel)
        async with asyncio.TaskGroup() as tasks:
            flooding = tasks.create_task(flood(lambda _number: call(stub, "GetUser", token)))
            quiet = [await call(UserServiceStub(other), "GetUser", token) for _ in range(20)]
        codes = flooding.result()
        assert ({*codes}, {*quiet}) == ({CODE.OK, CODE.UNAVAILABLE}, {CODE.OK})
        assert codes.count(CODE.OK) >= 100


@pytest.mark.parametrize("name", EDGES)
async def test_forged_addresses(name, tmp_path, planes):
    """Who says to be somebody else with each call is limited all the same."""
    async with published(name, tmp_path, planes, authentication=True) as edge:

        async def get(number):
            address = f"198.51.{number // 250}.{number % 250}"
            names = ("x-forwarded-for", "x-real-ip", "x-envoy-external-address", "true-client-ip")
            metadata = [(name, address) for name in names] + [("forwarded", f"for={address}")]
            request = pb.GetUserRequest(id=NOBODY)
            return await UserServiceStub(edge.channel).GetUser(request, metadata=metadata, timeout=25).code()

        codes = await flood(get)
        assert {*codes} == {CODE.UNAUTHENTICATED, CODE.UNAVAILABLE}


@asynccontextmanager
async def from_another_address(port):
    """Yield a port from which connections go on to `port`, as if from another machine."""

    async def forward(reader, writer):
        onward = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        await asyncio.gather(pump(reader, onward[1]), pump(onward[0], writer))

    async def pump(reader, writer):
        while data := await reader.read(2**16):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
