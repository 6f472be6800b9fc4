import copy
from contextlib import asynccontextmanager

import grpc
import pytest
import pytest_asyncio
import trustme
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.rendered import load
from tests.edges import istio, istio_server
from tests.edges.envoy import channel
from tests.edges.envoy_tls import speak_tls
from tests.edges.objects import named
from tests.interop.envoy_proxy import cluster, configured, listener
from tests.programs import running_server

# One server and one mesh for the tests of this file.
pytestmark = pytest.mark.asyncio(loop_scope="module")

CODE = grpc.StatusCode
METHODS = ("CreateUser", "GetUser", "ListUsers")
NOBODY = "01a20dfc-c89e-76ef-b891-a3fba7c9c311"
SERVER = "user-service-trial/user-service"
CLIENT = "user-service-trial/user-service-client"
GATEWAY = "istio-ingress/istio-ingress"


@pytest.fixture(scope="module")
def ca():
    """Return the authority of the mesh."""
    return trustme.CA()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run a server without TLS, as in the overlay."""
    with running_server(tmp_path_factory.mktemp("server") / "users.db") as running:
        yield running


@asynccontextmanager
async def serving(folder, ca, server, objects):
    """Run the server's sidecar, which holds to the policies of an overlay; yield its port."""
    own = istio_server.identity(folder / "own", ca, SERVER)
    async with configured(folder, *istio_server.sidecar(objects, server.port("grpc_port"), own)) as envoy:
        yield envoy.port


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sidecar(tmp_path_factory, ca, server):
    """Run the server's sidecar; return its port."""
    async with serving(tmp_path_factory.mktemp("sidecar"), ca, server, load("istio")) as port:
        yield port


@asynccontextmanager
async def calling(folder, ca, account, port):
    """Run a sidecar with the identity of an account, and no routes of its own; yield a channel to it."""
    upstream = cluster("sidecar", [port], connect_timeout="10s")
    speak_tls(upstream, istio_server.identity(folder / "own", ca, account), istio_server.MESH)
    everything = {"match": {"prefix": "/"}, "route": {"cluster": "sidecar", "timeout": "0s"}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [everything]}]
    async with (
        configured(folder, listener(hosts), [upstream]) as envoy,
        grpc.aio.insecure_channel(f"127.0.0.1:{envoy.port}") as opened,
    ):
        yield opened


@asynccontextmanager
async def calling_from_outside(folder, ca, port):
    """Run the ingress gateway; yield a channel to it."""
    certificate = CertificateDirectory(folder / "tls", trustme.CA(), "grpc.example.com")
    taking, [upstream] = istio.gateway(load("istio"), [], [port], certificate.path)
    speak_tls(upstream, istio_server.identity(folder / "own", ca, GATEWAY), istio_server.MESH)
    async with (
        configured(folder, taking, [upstream]) as envoy,
        channel("istio-gateway", certificate, envoy.port) as opened,
    ):
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
        ("user-service-trial/default", CODE.PERMISSION_DENIED),
        ("user-service-trial/user-service-client-2", CODE.PERMISSION_DENIED),
        ("other/user-service-client", CODE.PERMISSION_DENIED),
        ("istio-ingress/default", CODE.PERMISSION_DENIED),
    ],
)
async def test_accounts(sidecar, ca, tmp_path, account, code):
    """The accounts that the policies name may call, and nobody else of the mesh."""
    async with calling(tmp_path, ca, account, sidecar) as opened:
        assert await codes(opened) == dict.fromkeys(METHODS, code)


@pytest.mark.parametrize("account", [CLIENT, GATEWAY])
async def test_other_services_are_closed(sidecar, ca, tmp_path, account):
    """Health, reflection and services that nobody has are denied to those who may call too."""
    async with calling(tmp_path, ca, account, sidecar) as opened:
        for service in ("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "user.UserServiceV2"):
            code = await opened.unary_unary(f"/{service}/Check")(b"", timeout=25).code()
            assert code is CODE.PERMISSION_DENIED


async def test_method_that_is_new(sidecar, ca, tmp_path):
    """A method that the gateway's policy does not name is for callers in the mesh alone."""
    for account, code in ((CLIENT, CODE.UNIMPLEMENTED), (GATEWAY, CODE.PERMISSION_DENIED)):
        (tmp_path / code.name).mkdir()
        async with calling(tmp_path / code.name, ca, account, sidecar) as opened:
            assert await opened.unary_unary("/user.UserService/New")(b"", timeout=25).code() is code


async def test_caller_of_another_mesh(sidecar, tmp_path):
    """An account of the right name that another authority vouches for is nobody."""
    async with calling(tmp_path, trustme.CA(), CLIENT, sidecar) as opened:
        assert await call(opened, "GetUser") is CODE.UNAVAILABLE


async def test_caller_without_a_sidecar(sidecar):
    """Plaintext is not taken."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{sidecar}") as opened:
        assert await call(opened, "GetUser") is CODE.UNAVAILABLE


async def test_from_outside(sidecar, ca, tmp_path):
    """Through the gateway and both of the policies' sides calls get to the server, and to nothing else."""
    async with calling_from_outside(tmp_path, ca, sidecar) as opened:
        assert await codes(opened) == dict.fromkeys(METHODS, CODE.OK)
        code = await opened.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=25).code()
        assert code is CODE.UNIMPLEMENTED


@pytest.mark.parametrize("method", METHODS)
async def test_method_that_is_closed(server, ca, tmp_path, method):
    """A method that is taken out of the gateway's policy is closed to the outside, and open in the mesh."""
    objects = copy.deepcopy(load("istio"))
    [rule] = named(objects, "AuthorizationPolicy", "user-service-gateway")["spec"]["rules"]
    rule["to"][0]["operation"]["paths"].remove(f"/user.UserService/{method}")
    for name in ("server", "outside", "inside"):
        (tmp_path / name).mkdir()
    async with (
        serving(tmp_path / "server", ca, server, objects) as port,
        calling_from_outside(tmp_path / "outside", ca, port) as outside,
        calling(tmp_path / "inside", ca, CLIENT, port) as inside,
    ):
        assert await codes(outside) == dict.fromkeys(METHODS, CODE.OK) | {method: CODE.PERMISSION_DENIED}
        assert await codes(inside) == dict.fromkeys(METHODS, CODE.OK)


@pytest.mark.parametrize("kind", ["AuthorizationPolicy", "PeerAuthentication"])
async def test_field_that_is_not_translated(kind, tmp_path):
    """A field that these tests would pass over is an error."""
    objects = copy.deepcopy(load("istio"))
    for each in objects:
        if each["kind"] == kind:
            each["spec"]["surprise"] = True
    with pytest.raises(ValueError, match="surprise: this test does not translate it"):
        istio_server.sidecar(objects, 1, tmp_path)
