import asyncio
import copy
from contextlib import ExitStack, asynccontextmanager

import grpc
import pytest
import pytest_asyncio
import trustme
from cryptography import x509
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing.certificates import issue
from k8s.checks.rendered import load
from tests.edges.envoy import channel, control_planes, moved
from tests.edges.objects import named
from tests.programs import PATIENCE, running_server

# One mesh for the tests of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")

CODE = grpc.StatusCode
METHODS = ("CreateUser", "GetUser", "ListUsers")
NOBODY = "01a20dfc-c89e-76ef-b891-a3fba7c9c311"
TRIAL = "trial"
SERVER = f"{TRIAL}/user-service"
CLIENT = f"{TRIAL}/user-service-client"
STRANGERS = (
    f"{TRIAL}/default",
    f"{TRIAL}/user-service-client-2",
    "other/user-service-client",
    "istio-ingress/default",
)
GATEWAY = "istio-ingress/istio-ingress"


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """Return the control planes."""
    with control_planes(tmp_path_factory.mktemp("planes")) as planes:
        yield planes


@pytest.fixture(scope="module")
def mesh(planes):
    """Run a mesh with the overlay in it, but for its routes inside the mesh, and with other accounts."""
    mesh = planes.mesh
    overlay = moved(load("istio"), TRIAL)
    mesh.deploy([each for each in overlay if each is not named(overlay, "VirtualService", "user-service")])
    mesh.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}])
    mesh.apply([account(each) for each in STRANGERS if not each.endswith("/default")])
    return mesh


def account(title):
    """Return a ServiceAccount."""
    namespace, name = title.split("/")
    where = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": where}


@pytest.fixture(scope="module")
def sidecar(mesh, tmp_path_factory):
    """Run a server without TLS, as in the overlay, and its sidecar; return the sidecar's address."""
    with (
        running_server(tmp_path_factory.mktemp("server") / "users.db") as server,
        mesh.server_sidecar(TRIAL, server.port("grpc_port")) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def callers(mesh, sidecar):
    """Return what opens a channel to the sidecar of a caller, which runs from then on."""
    with ExitStack() as stack:
        running = {}

        def caller(account):
            if account not in running:
                running[account] = stack.enter_context(mesh.caller_sidecar(account, TRIAL, [sidecar]))
            return to(running[account])

        yield caller


def to(envoy):
    """Return a channel to a caller's sidecar, for the name of the Service."""
    options = [("grpc.default_authority", f"user-service.{TRIAL}:50051")]
    return grpc.aio.insecure_channel(envoy.address, options=options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outside(planes, mesh, sidecar):
    """Run the ingress gateway; return a channel to it."""
    with mesh.ingress_gateway(TRIAL, [sidecar]) as envoy:
        async with channel("istio-gateway", planes.certificate, envoy.port) as opened:
            yield opened


async def call(opened, method):
    """Call a method; return its status. Nobody is found, and nobody's name is right: both got through."""
    stub = UserServiceStub(opened)
    if method == "ListUsers":
        return await stub.ListUsers(pb.ListUsersRequest(), timeout=25).code()
    request = {"GetUser": pb.GetUserRequest(id=NOBODY), "CreateUser": pb.CreateUserRequest()}[method]
    code = await getattr(stub, method)(request, timeout=25).code()
    return CODE.OK if code in {CODE.NOT_FOUND, CODE.INVALID_ARGUMENT} else code


async def codes(opened):
    """Return the status of each method."""
    return {method: await call(opened, method) for method in METHODS}


@pytest.mark.parametrize(
    ("account", "code"),
    [
        (CLIENT, CODE.OK),
        (GATEWAY, CODE.OK),
        (SERVER, CODE.PERMISSION_DENIED),
        *((stranger, CODE.PERMISSION_DENIED) for stranger in STRANGERS),
    ],
)
async def test_accounts(callers, account, code):
    """The accounts that the policies name may call, and nobody else of the mesh."""
    async with callers(account) as opened:
        assert await codes(opened) == dict.fromkeys(METHODS, code)


@pytest.mark.parametrize("account", [CLIENT, GATEWAY])
async def test_other_services_are_closed(callers, account):
    """Health, reflection and services that nobody has are denied to those who may call too."""
    async with callers(account) as opened:
        for service in ("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "user.UserServiceV2"):
            code = await opened.unary_unary(f"/{service}/Check")(b"", timeout=25).code()
            assert code is CODE.PERMISSION_DENIED


async def test_method_that_is_new(callers):
    """A method that the gateway's policy does not name is for callers in the mesh alone."""
    for account, code in ((CLIENT, CODE.UNIMPLEMENTED), (GATEWAY, CODE.PERMISSION_DENIED)):
        async with callers(account) as opened:
            assert await opened.unary_unary("/user.UserService/New")(b"", timeout=25).code() is code


@pytest.mark.parametrize("other", [False, True], ids=["of this mesh", "of another mesh"])
async def test_who_vouches_for_an_account(mesh, sidecar, other):
    """An account of the right name is nobody if another authority than the mesh's vouches for it."""
    uri = x509.UniformResourceIdentifier(f"spiffe://cluster.local/ns/{TRIAL}/sa/user-service-client")
    files = issue(trustme.CA() if other else mesh.authority, uri)
    identity = {"cert-chain.pem": files["tls.crt"], "key.pem": files["tls.key"]}
    identity["root-cert.pem"] = mesh.authority.cert_pem.bytes()
    with mesh.caller_sidecar(CLIENT, TRIAL, [sidecar], identity) as envoy:
        async with to(envoy) as opened:
            assert await call(opened, "GetUser") is (CODE.UNAVAILABLE if other else CODE.OK)


async def test_caller_without_a_sidecar(sidecar):
    """Plaintext is not taken."""
    async with grpc.aio.insecure_channel(sidecar) as opened:
        assert await call(opened, "GetUser") is CODE.UNAVAILABLE


async def test_from_outside(outside):
    """Through the gateway and both of the policies' sides calls get to the server, and to nothing else."""
    assert await codes(outside) == dict.fromkeys(METHODS, CODE.OK)
    code = await outside.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=25).code()
    assert code is CODE.UNIMPLEMENTED


@pytest.mark.parametrize("method", METHODS)
async def test_method_that_is_closed(mesh, callers, outside, method):
    """A method that is taken out of the gateway's policy is closed to the outside, and open in the mesh."""
    async with closed(mesh, outside, method), callers(CLIENT) as inside:
        assert await codes(outside) == dict.fromkeys(METHODS, CODE.OK) | {method: CODE.PERMISSION_DENIED}
        assert await codes(inside) == dict.fromkeys(METHODS, CODE.OK)


@asynccontextmanager
async def closed(mesh, outside, method):
    """Take a method out of the gateway's policy, and wait until that holds; so at the end."""
    policy = named(moved(load("istio"), TRIAL), "AuthorizationPolicy", "user-service-gateway")
    changed = copy.deepcopy(policy)
    [rule] = changed["spec"]["rules"]
    rule["to"][0]["operation"]["paths"].remove(f"/user.UserService/{method}")
    mesh.apply([changed])
    await until(outside, method, CODE.PERMISSION_DENIED)
    yield
    mesh.apply([policy])
    await until(outside, method, CODE.OK)


async def until(opened, method, code):
    """Call a method until the status is another."""
    async with asyncio.timeout(PATIENCE):
        while await call(opened, method) is not code:
            await asyncio.sleep(0.05)
