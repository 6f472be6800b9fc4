from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import prometheus_client
import pytest
import structlog
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

import grpc_common
from grpc_common.testing.certificates import CertificateDirectory

CONFIG = """
server:
  port: 0
  health_port: 0
  tls:
    directory: {directory}
    require_client_certificate: true
  allowed_callers:
    /test.Echo/Write: [admin.test]
  drain: {{delay: 0s}}
metrics: {{enabled: false}}
"""


async def echo(request: bytes, _context) -> bytes:
    """Answer with the request."""
    return request


def add(_servicer, server) -> None:
    """Register test.Echo."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(echo) for name in ("Read", "Write")}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


@pytest.fixture
def ca() -> trustme.CA:
    """Return the authority that server and clients trust."""
    return trustme.CA()


@pytest.fixture
def config(tmp_path: Path, ca: trustme.CA) -> grpc_common.ServerConfig:
    """Return the configuration of a server with mutual TLS."""
    directory = CertificateDirectory(tmp_path / "server", ca, "localhost").path
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(directory=directory))
    return grpc_common.load(grpc_common.ServerConfig, file, {})


@asynccontextmanager
async def called_by(name: str, config: grpc_common.ServerConfig, folder: Path, ca: trustme.CA):
    """Serve, and yield a channel of a client with a certificate for `name`."""
    tls = grpc_common.ClientTLS(CertificateDirectory(folder / name, ca, name).path)
    server = grpc_common.Server(config)
    server.add(None, add)
    async with server.serving() as port, grpc_common.channel(f"localhost:{port}", tls=tls) as channel:
        yield channel


async def test_caller_with_an_allowed_name(config, tmp_path, ca):
    """A client whose certificate has an allowed SAN calls everything."""
    async with called_by("admin.test", config, tmp_path, ca) as channel:
        assert await channel.unary_unary("/test.Echo/Read")(b"a") == b"a"
        assert await channel.unary_unary("/test.Echo/Write")(b"a") == b"a"


async def test_caller_with_another_name(config, tmp_path, ca):
    """Another client calls what is open, and gets PERMISSION_DENIED for the rest."""
    async with called_by("web.test", config, tmp_path, ca) as channel:
        assert await channel.unary_unary("/test.Echo/Read")(b"a") == b"a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Echo/Write")(b"a")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_probes_need_no_certificate(config, tmp_path, ca):
    """The health port of a server with TLS speaks plaintext, as kubelet does."""
    with structlog.testing.capture_logs() as logs:
        async with called_by("web.test", config, tmp_path, ca):
            (port,) = [entry["health_port"] for entry in logs if entry["event"] == "serving"]
            async with grpc.aio.insecure_channel(f"localhost:{port}") as probe:
                check = health_pb2_grpc.HealthStub(probe).Check
                response = await check(health_pb2.HealthCheckRequest(service="readiness"))
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_certificates_are_needed_at_start(config):
    """A server whose certificates are not there does not start, and says which file it misses."""
    Path(config.server.tls.directory, "tls.key").unlink()
    with pytest.raises(grpc_common.StartError, match=r"tls\.key"):
        grpc_common.Server(config)


def expiries(directory: Path) -> dict[str, float]:
    """Return what the metric says of the certificates in `directory`, by their use."""
    return {
        sample.labels["use"]: sample.value
        for family in prometheus_client.REGISTRY.collect()
        for sample in family.samples
        if sample.name == "grpc_tls_certificate_expiry_seconds"
        and sample.labels["directory"] == str(directory)
    }


async def test_expiry_of_what_has_ended(config):
    """Server and channels of one directory have a series each until they end, though objects are kept."""
    directory = config.server.tls.directory
    server = grpc_common.Server(config)
    server.add(None, add)
    tls = grpc_common.ClientTLS(directory)
    async with server.serving() as port:
        async with grpc_common.channel(f"localhost:{port}", tls=tls) as one:
            async with grpc_common.channel(f"localhost:{port}", tls=tls) as other:
                assert set(expiries(directory)) == {"server", "client"}
            assert set(expiries(directory)) == {"server", "client"}
        assert set(expiries(directory)) == {"server"}
    assert expiries(directory) == {}
    assert all((one, other, server))
