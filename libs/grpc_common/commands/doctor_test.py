import asyncio
import os
import sys
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta

import dnslib.server
import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from grpc_common.commands.diagnosis import DiagnosisError, Endpoint, Report, examine
from grpc_common.commands.doctor import problems
from grpc_common.core.errors import printable
from grpc_common.testing.api_server import ApiServer, endpoint_slice, kubeconfig
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.tls.credentials import server_credentials


async def doctor(*arguments: str) -> tuple[int | None, str, str]:
    """Run the doctor as a process of its own; return exit code, standard output and error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "grpc_common.commands.doctor", *arguments),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def serving(*statuses, credentials=None, has_health=True):
    """Serve one status each on 127.0.0.1, 127.0.0.2, ... at the same port, which is yielded."""
    port = 0
    servers = []
    for number, status in enumerate(statuses, 1):
        server = grpc.aio.server()
        if has_health:
            servicer = health.aio.HealthServicer()
            await servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        address = f"127.0.0.{number}:{port}"
        if credentials:
            port = server.add_secure_port(address, credentials())
        else:
            port = server.add_insecure_port(address)
        await server.start()
        servers.append(server)
    try:
        yield port
    finally:
        await asyncio.gather(*(server.stop(None) for server in servers))


def addresses(port, count):
    """Return a target of several servers."""
    return "ipv4:" + ",".join(f"127.0.0.{number}:{port}" for number in range(1, count + 1))


@contextmanager
def name_server(*ips):
    """Answer every question for addresses with `ips`; yield the server's address."""

    class Resolver(dnslib.server.BaseResolver):
        def resolve(self, request, _handler):
            reply = request.reply()
            if request.q.qtype == dnslib.QTYPE.A:
                for ip in ips:
                    reply.add_answer(dnslib.RR(request.q.qname, rdata=dnslib.A(ip)))
            return reply

    server = dnslib.server.DNSServer(
        Resolver(), address="127.0.0.1", port=0, logger=dnslib.server.DNSLogger("-request,-reply")
    )
    server.start_thread()
    try:
        yield f"127.0.0.1:{server.server.server_address[1]}"
    finally:
        server.stop()
        server.server.server_close()


async def test_even():
    """Three healthy servers get a third of the calls each: exit code 0."""
    async with serving("SERVING", "SERVING", "SERVING") as port:
        code, out, _ = await doctor(addresses(port, 3), "--calls", "300")
    assert code == 0, out
    assert out.count("SERVING") == 3
    assert out.count("█ 100\n") + out.count("█ 100 ") == 3
    assert "fairness index: 1.000" in out
    assert "No problems found." in out


async def test_not_serving():
    """An endpoint that is NOT_SERVING is named, and gets no call."""
    async with serving("SERVING", "SERVING", "NOT_SERVING") as port:
        code, out, _ = await doctor(addresses(port, 3), "--calls", "100")
    assert code == 1
    assert f"127.0.0.3:{port}, one endpoint of 3, is NOT_SERVING" in out
    assert out.count(" 50") == 2
    assert "fairness index: 0.667" in out


async def test_dead_endpoint():
    """An endpoint where nobody listens is named with the reason."""
    async with serving("SERVING", "SERVING") as port:
        code, out, _ = await doctor(addresses(port, 3), "--calls", "100")
    assert code == 1
    assert f"127.0.0.3:{port}, one endpoint of 3, cannot be reached" in out
    assert "Connection refused" in out


async def test_no_endpoint_is_reached():
    """Without any server the calls fail, and the reason is told."""
    code, out, _ = await doctor("127.0.0.1:1", "--calls", "10")
    assert code == 1
    assert "cannot be reached" in out
    assert "10 calls over one channel failed" in out


async def test_pick_first_is_blamed():
    """A client without round_robin sends all calls to one endpoint, and is told what to set."""
    async with serving("SERVING", "SERVING") as port:
        code, out, _ = await doctor(addresses(port, 2), "--calls", "100", "--policy", "pick_first")
    assert code == 1
    assert "pick_first sends all calls to one of the 2 endpoints" in out
    assert "round_robin" in out
    assert "fairness index: 0.500" in out


async def test_name_with_several_addresses():
    """All addresses of a name are endpoints, as for a headless Service."""
    async with serving("SERVING", "SERVING") as port:
        with name_server("127.0.0.1", "127.0.0.2") as dns:
            code, out, _ = await doctor(f"dns://{dns}/echo.test:{port}", "--calls", "100")
    assert code == 0, out
    assert f"ipv4:127.0.0.2:{port}" in out


async def test_name_with_a_single_address():
    """A name that looks like a ClusterIP Service is a problem, with the way out."""
    async with serving("SERVING") as port:
        with name_server("127.0.0.1") as dns:
            code, out, _ = await doctor(f"dns://{dns}/echo.test:{port}", "--calls", "10")
    assert code == 1
    assert "ClusterIP" in out
    assert "clusterIP: None" in out


async def test_unresolvable_name():
    """A name without an address is an error with the name in it."""
    with name_server() as dns:
        code, out, err = await doctor(f"dns://{dns}/echo.test:50051")
    assert (code, out) == (1, "")
    assert "echo.test" in err


async def test_server_without_health_service():
    """A server that can't tell its health is named."""
    async with serving("SERVING", has_health=False) as port:
        code, out, _ = await doctor(addresses(port, 1), "--calls", "10")
    assert code == 1
    assert "has no grpc.health.v1.Health" in out


async def test_unknown_service():
    """A service that a server does not know is told."""
    async with serving("SERVING") as port:
        code, out, _ = await doctor(addresses(port, 1), "--calls", "10", "--service", "user.UserService")
    assert code == 1
    assert "does not know the service" in out


@pytest.fixture(scope="module")
def ca():
    """The authority of all certificates."""
    return trustme.CA()


def credentials_of(directory):
    """Return a function that makes credentials for one port."""
    return lambda: server_credentials(directory.path, require_client_certificate=False)


async def test_tls(tmp_path, ca):
    """Protocol, names and expiry of the certificate are shown."""
    directory = CertificateDirectory(tmp_path / "tls", ca, "echo.default", "127.0.0.1")
    async with serving("SERVING", credentials=credentials_of(directory)) as port:
        code, out, _ = await doctor(
            addresses(port, 1), "--calls", "10", "--tls-directory", str(directory.path)
        )
    assert code == 0, out
    assert "TLSv1.3, until 3000-01-01" in out
    assert "echo.default 127.0.0.1" in out


async def test_certificate_for_another_name(tmp_path, ca):
    """A certificate that is not for the target makes the endpoint fail; --server-name helps."""
    directory = CertificateDirectory(tmp_path / "tls", ca, "echo.default")
    async with serving("SERVING", credentials=credentials_of(directory)) as port:
        arguments = (addresses(port, 1), "--calls", "10", "--tls-directory", str(directory.path))
        code, out, _ = await doctor(*arguments)
        assert code == 1
        assert "cannot be reached" in out
        code, out, _ = await doctor(*arguments, "--server-name", "echo.default")
        assert code == 0, out


async def test_certificate_that_was_not_renewed(tmp_path, ca):
    """A certificate near its end is a problem, though all is well today."""
    directory = CertificateDirectory(tmp_path / "tls", ca, "127.0.0.1")
    now = datetime.now(UTC)
    directory.rotate(not_before=now - timedelta(days=85), not_after=now + timedelta(days=5))
    async with serving("SERVING", credentials=credentials_of(directory)) as port:
        code, out, _ = await doctor(
            addresses(port, 1), "--calls", "10", "--tls-directory", str(directory.path)
        )
    assert code == 1
    assert "5% of its life left" in out or "6% of its life left" in out


async def test_plaintext_to_a_server_with_tls(tmp_path, ca):
    """The option that is missing is named."""
    directory = CertificateDirectory(tmp_path / "tls", ca, "127.0.0.1")
    async with serving("SERVING", credentials=credentials_of(directory)) as port:
        code, out, _ = await doctor(addresses(port, 1), "--calls", "10")
    assert code == 1
    assert "give --tls-directory" in out


@pytest.fixture
async def api_server(tmp_path, monkeypatch):
    """A fake API server that KUBECONFIG leads to."""
    async with ApiServer().serve() as server:
        path = tmp_path / "kubeconfig"
        path.write_text(kubeconfig(server.url, {"token": "secret"}))
        monkeypatch.setenv("KUBECONFIG", str(path))
        yield server


async def test_kubernetes(api_server):
    """The endpoints of a Kubernetes Service come from its EndpointSlices."""
    async with serving("SERVING", "SERVING") as port:
        slices = endpoint_slice("echo-1", ["127.0.0.1", "127.0.0.2"], ports=[("grpc", port)])
        api_server.put(slices)
        code, out, _ = await doctor("kubernetes:///echo.default:grpc", "--calls", "100")
    assert code == 0, out
    assert f"ipv4:127.0.0.2:{port}" in out


async def test_kubernetes_without_endpoints(api_server):
    """An empty Service is told with the likely reason."""
    api_server.put(endpoint_slice("echo-1", ["127.0.0.1"], conditions={"ready": False}))
    code, _, err = await doctor("kubernetes:///echo.default:50051")
    assert code == 1
    assert "no pod of the Service is ready" in err


async def test_kubernetes_forbidden(api_server):
    """A missing Role is told in the words of RBAC."""
    api_server.refuse(403, 'User "me" cannot list resource "endpointslices"')
    code, _, err = await doctor("kubernetes:///echo.default:50051")
    assert code == 1
    assert "cannot list" in err
    assert "verbs [get, list, watch]" in err


async def test_kubernetes_without_the_extra(monkeypatch):
    """Without the packages for it, one line says what to install."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(DiagnosisError, match=r"grpc-on-kubernetes-common\[kubernetes\]$"):
        await examine("kubernetes:///echo.default:50051")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["a:1", "--calls", "0"], ["a:1", "--tls-directory", "/none"], ["kubernetes:///A:1"]],
)
async def test_wrong_usage(arguments):
    """Wrong arguments are exit code 2 and an explanation."""
    code, _, err = await doctor(*arguments)
    assert code == 2
    assert "Error:" in err


async def test_unusable_certificate_files(tmp_path):
    """A directory without certificates is wrong usage, with the file named."""
    code, _, err = await doctor("a:1", "--tls-directory", str(tmp_path))
    assert code == 2
    assert "ca.crt" in err


def test_uneven_without_a_known_reason():
    """Healthy endpoints with uneven calls are a problem of their own."""
    endpoints = [
        Endpoint("ipv4:10.0.0.1:1", "SERVING", calls=900),
        Endpoint("ipv4:10.0.0.2:1", "SERVING", calls=100),
    ]
    (problem,) = problems(
        Report("dns:///a:1", "round_robin", has_tls=False, endpoints=endpoints, failures=[])
    )
    assert "0.61" in problem


def test_terminal_is_safe():
    """What a server says can't move the cursor."""
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"


async def test_relative_path_under_bazel_run(monkeypatch, tmp_path):
    """A path is the one that the user sees, where `bazel run` has changed the folder of the process."""
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
    _, _, error = await doctor("localhost:1", "--tls-directory", "certs")
    assert f"Directory '{tmp_path}/certs' does not exist" in error
