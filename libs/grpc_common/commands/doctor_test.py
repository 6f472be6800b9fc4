import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dnslib.server
import pytest
import trustme

from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.commands.diagnosis import Client, Examined, Report, examine
from grpc_common.commands.finding import DiagnosisError
from grpc_common.commands.problems import problems
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.doctor import addresses, doctor, serving
from grpc_common.tls.credentials import server_credentials


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
    assert "fairness index: 0.000" in out


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
    assert f"127.0.0.2:{port}" in out
    assert "endpoints confirmed" in out


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


def examined(number, **found):
    """Return an endpoint that is well but for what is said."""
    well = {"health": "SERVING", "state": "ready", "calls": 100} | found
    attributes = {name: well.pop(name) for name in ("zone", "terminating") if name in well}
    return Examined(Endpoint(f"10.0.0.{number}:1", **attributes), **well)


def report(*endpoints, policy="round_robin", **found):
    """Return a report on these endpoints."""
    return Report("kubernetes:///a.b:1", Client(policy), endpoints, **found)


def test_all_is_well():
    """Endpoints that are well, evenly used and in their zones are no problem."""
    assert list(problems(report(examined(1, zone="a"), examined(2, zone="b")))) == []


def test_uneven_without_a_known_reason():
    """Healthy endpoints with uneven calls are a problem of their own."""
    (problem,) = problems(report(examined(1, calls=900), examined(2, calls=100)))
    assert "0.61" in problem
    assert "least_request" not in problem
    (problem,) = problems(report(examined(1, calls=900), examined(2, calls=100), policy="least_request"))
    assert "the slower ones get fewer by least_request" in problem


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"state": "connecting"}, "10.0.0.2:1, one endpoint of 2, is not connected (connecting)"),
        ({"state": "ejected"}, "10.0.0.2:1, one endpoint of 2, is ejected"),
        ({"zone": ""}, "10.0.0.2:1, one endpoint of 2, is in no zone"),
    ],
)
def test_an_endpoint_that_differs(found, words):
    """An endpoint that answers, but that the channel does not use as the others, is named."""
    (problem,) = problems(report(examined(1, zone="a"), examined(2, **{"zone": "a"} | found)))
    assert words in problem


def test_endpoints_that_may_be_old():
    """What the source says is wrong is a problem, though the endpoints it had are well."""
    (problem,) = problems(report(examined(1), reason="403 Forbidden"))
    assert "403 Forbidden" in problem


def test_all_are_terminating():
    """Endpoints that are all on their way out are a problem; some are none."""
    (problem,) = problems(report(examined(1, terminating=True)))
    assert "all 1 endpoints are terminating" in problem
    some = report(examined(1), examined(2, terminating=True, state="unused", calls=0))
    assert list(problems(some)) == []


async def test_relative_path_under_bazel_run(monkeypatch, tmp_path):
    """A path is the one that the user sees, where `bazel run` has changed the folder of the process."""
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
    _, _, error = await doctor("localhost:1", "--tls-directory", "certs")
    assert f"Directory '{tmp_path}/certs' does not exist" in error
