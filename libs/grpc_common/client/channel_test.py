import asyncio
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import grpc
import pytest
import structlog
import trustme

from grpc_common.client.channel import ChannelConfig, Keepalive, NotReadyError, channel
from grpc_common.config.sections import ServerConfig
from grpc_common.core.errors import StartError
from grpc_common.testing.api_server import ApiServer, endpoint_slice
from grpc_common.testing.backends import NOT_SERVING, Backend, FedEndpoints, serve_in_process
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.tls.credentials import ClientTLS, TlsError, server_credentials

ECHO, HOLD = "/test.Backend/Echo", "/test.Backend/Hold"
KUBERNETES = "kubernetes:///backend.test:50051"


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("127.0.0.1:0", "{}"),
        ("127.0.0.1:0", "ipv4:{}"),
        ("[::1]:0", "ipv6:{}"),
        ("localhost:0", "dns:///{}"),
        ("unix:{}/backend.sock", "{}"),
        ("unix-abstract:grpc-common-test-{}", "{}"),
    ],
)
async def test_targets_of_grpc(listen, target):
    """All that grpc can dial works through the channel."""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long a name for a socket
        async with (
            Backend.serving(listen.format(folder)) as (_backend, address),
            channel(target.format(address)) as client,
        ):
            assert await client.unary_unary(ECHO)(b"a") == b"a"


async def test_target_is_refused_at_once():
    """A mistake in the target is no reason to wait for a connection."""
    with pytest.raises(ValueError, match="is not of the form"):
        await channel("user-service").__aenter__()


@pytest.mark.parametrize("missing", ["aiohttp", "kubernetes_asyncio"])
async def test_missing_extra_is_named(monkeypatch, missing):
    """A target of Kubernetes without the packages for it ends a program with what to install."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(StartError, match=r"grpc-on-kubernetes-common\[kubernetes\]$"):
        await channel("kubernetes:///echo.default:50051").__aenter__()


async def test_generated_stubs_work_unchanged():
    """A stub takes the channel for one of grpc's, registered methods included."""
    async with Backend.serving() as (_backend, address), channel(address) as client:
        assert isinstance(client, grpc.aio.Channel)
        call = client.unary_unary(ECHO, str.encode, bytes.decode, _registered_method=True)
        assert await call("a", compression=grpc.Compression.Gzip) == "a"
        assert await client.stream_stream("/test.Backend/Chat")(iter([b"a"]), 5).read() == b"a"


async def test_start_is_bounded():
    """Without a server the error comes in time, and tells the target and grpc's reason."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(
        NotReadyError, match=rf"^127.0.0.1:{port} was not ready within 1 s: .*Connection refused"
    ):
        await channel(f"127.0.0.1:{port}", ready_timeout=1).__aenter__()
    assert time.monotonic() - start < 8  # by default it would be 10


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("127.0.0.1:1", "127.0.0.1:1 was not ready within 0.1 s: "),
        (KUBERNETES, "not in a pod, and there is no kubeconfig "),
    ],
)
def test_server_that_needs_a_channel(tmp_path, target, reason):
    """A program whose server can't start without the channel ends with that one sentence, and exit code 1."""
    program = tmp_path / "server.py"
    program.write_text(f"""
import grpc_common

async def serve(config):
    async with grpc_common.channel("{target}", ready_timeout={0.1 if target != KUBERNETES else 10}):
        return 0

grpc_common.command(serve, grpc_common.ServerConfig)()
""")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "KUBECONFIG": str(tmp_path / "none")}
    result = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 1
    assert f"Error: {reason}" in result.stderr
    assert "Traceback" not in result.stderr


async def test_start_tells_that_no_server_is_healthy():
    """A server that is there and NOT_SERVING is told from one that is not there."""
    async with Backend.serving() as (backend, address):
        await backend.health.set("", NOT_SERVING)
        with pytest.raises(NotReadyError, match="backend unhealthy"):
            await channel(address, ready_timeout=3).__aenter__()  # in which a busy machine connects too


@pytest.mark.parametrize(
    ("endpoints", "reason"),
    [([[]], "no endpoint is ready"), ([], "not yet known which endpoint is ready")],
)
async def test_start_tells_that_there_is_no_endpoint(endpoints, reason):
    """A service without an endpoint is told from one whose endpoints don't answer, or aren't known."""
    with pytest.raises(NotReadyError, match=f"within 1 s: {reason}"):
        await channel(KUBERNETES, endpoints=FedEndpoints(*endpoints), ready_timeout=1).__aenter__()


@pytest.mark.parametrize("name", ["inventory", 'the "inventory", of é'])
async def test_target_is_only_a_name_with_endpoints_of_ones_own(name):
    """What has a source needs no target that could be dialled, as docs/balancing.md has it."""
    async with (
        Backend.serving() as (backend, address),
        channel(name, endpoints=FedEndpoints([address])) as client,
    ):
        assert await client.unary_unary("/test.Backend/Echo")(b"hello") == b"hello"
    assert backend.calls == 1


@pytest.mark.parametrize("name", ["", "two\nlines", "\ud800"])
async def test_name_is_printable(name):
    """A name that could not be written into a log or a page of metrics is refused."""
    with pytest.raises(ValueError, match="not a printable text"):
        await channel(name, endpoints=FedEndpoints(["127.0.0.1:1"])).__aenter__()


async def test_start_tells_why_no_endpoint_makes_sense():
    """Where all that the source tells is left out, the fault is told, and not that nothing is known yet."""
    with pytest.raises(NotReadyError, match="the first: address 'nonsense' is not of the form IP:PORT"):
        await channel("inventory", endpoints=FedEndpoints(["nonsense"]), ready_timeout=1).__aenter__()


async def test_start_fails_with_the_source_of_endpoints():
    """When nobody can tell the endpoints, there is nothing to wait for."""
    with pytest.raises(OSError, match="no such cluster"):
        await channel(KUBERNETES, endpoints=FedEndpoints(OSError("no such cluster"))).__aenter__()


async def test_start_without_waiting():
    """With no ready_timeout the block begins before the server does."""
    async with channel("127.0.0.1:1", ready_timeout=None) as client:
        assert client.get_state() is not grpc.ChannelConnectivity.READY


async def test_stopped_server_is_found():
    """A call to a process that stands still, its connection open, fails within time + timeout."""
    context = multiprocessing.get_context("spawn")
    receive_address, report_address = context.Pipe(duplex=False)
    process = context.Process(target=serve_in_process, args=(report_address,))
    process.start()
    address = await asyncio.to_thread(receive_address.recv)
    config = ChannelConfig(keepalive=Keepalive(time=5, timeout=1))
    try:
        async with channel(address, config=config) as client:
            call = client.unary_unary(HOLD)(b"", timeout=60)
            await client.unary_unary(ECHO)(b"")
            # Until the pings of flow control are over, which would find it, too.
            await asyncio.sleep(1)
            os.kill(process.pid, signal.SIGSTOP)
            start = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
    finally:
        process.kill()
        await asyncio.to_thread(process.join)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - start < 5 + 1 + 4  # with the default times it would be 13


def test_client_agrees_with_the_server():
    """Limits and deadlines are the server's, and pings are not more often than it allows."""
    server, client = ServerConfig().server, ChannelConfig()
    assert client.keepalive.time >= server.keepalive.min_time
    Keepalive(time=server.keepalive.min_time)
    with pytest.raises(ValueError, match=r"less than 5 s, the servers' keepalive\.min_time"):
        Keepalive(time=server.keepalive.min_time - 0.1)
    assert (client.max_recv_msg_size, client.max_send_msg_size) == (
        server.max_send_msg_size,
        server.max_recv_msg_size,
    )
    assert (client.default_deadline, client.default_stream_deadline) == (
        server.default_deadline,
        server.default_stream_deadline,
    )


async def test_message_sizes():
    """A message may be larger than grpc's own limit of 4 MiB, up to the limit and not beyond."""
    options = [("grpc.max_receive_message_length", -1)]
    async with Backend.serving(options=options) as (_backend, address), channel(address) as client:
        assert len(await client.unary_unary(ECHO)(bytes(10 * 2**20))) == 10 * 2**20
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.unary_unary(ECHO)(bytes(10 * 2**20 + 1))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "settings",
    [{"default_deadline": 0}, {"method_deadlines": {"a.B/C": -1}}, {"method_deadlines": {"C": 1}}],
)
def test_impossible_deadlines_are_refused(settings):
    """A deadline that has passed, or one of no method, is an error."""
    with pytest.raises(ValueError, match=r"should be greater than 0|is not of the form"):
        ChannelConfig(**settings)


@pytest.fixture
def ca():
    """Return an authority that signs certificates."""
    return trustme.CA()


async def test_certificate_must_be_for_the_name_of_the_target(ca, tmp_path):
    """Addresses of pods stand in no certificate: the target's name must, or server_name."""
    CertificateDirectory(tmp_path / "server", ca, "backend.test")
    client_files = CertificateDirectory(tmp_path / "client", ca, "client.test")
    credentials = server_credentials(tmp_path / "server", require_client_certificate=True)
    async with Backend.serving(credentials=credentials) as (_backend, address):

        def dial(target, server_name=None, ready_timeout=20):
            tls = ClientTLS(client_files.path, server_name)
            return channel(target, tls=tls, endpoints=FedEndpoints([address]), ready_timeout=ready_timeout)

        async with dial("kubernetes:///backend.test:1") as client:
            await client.unary_unary(ECHO)(b"")
        async with dial("kubernetes:///other.test:1", server_name="backend.test") as client:
            await client.unary_unary(ECHO)(b"")
        with pytest.raises(NotReadyError, match="Hostname Verification Check failed"):
            await dial("kubernetes:///other.test:1", ready_timeout=2).__aenter__()


async def test_hundred_rotations_of_the_client_certificate_under_load(ca, tmp_path, monkeypatch):
    """Each new certificate is soon the one that the server sees, and no call fails."""
    monkeypatch.setattr("grpc_common.client.renewal._INTERVAL", 0.01)
    CertificateDirectory(tmp_path / "server", ca, "backend.test")
    files = CertificateDirectory(tmp_path / "client", ca, "client.test")
    credentials = server_credentials(tmp_path / "server", require_client_certificate=True)
    async with (
        Backend.serving(credentials=credentials) as (backend, address),
        channel(KUBERNETES, tls=ClientTLS(directory=files.path), endpoints=FedEndpoints([address])) as client,
    ):
        echo = client.unary_unary(ECHO)
        for _ in range(100):
            files.rotate()
            certificate = (files.path / "tls.crt").read_bytes()
            async with asyncio.timeout(20):
                while backend.certificate != certificate:
                    await asyncio.gather(*(echo(b"") for _ in range(4)))


async def test_unusable_certificate_files_change_nothing(ca, tmp_path, monkeypatch):
    """Files that don't belong together are left until better ones come."""
    monkeypatch.setattr("grpc_common.client.renewal._INTERVAL", 0.01)
    CertificateDirectory(tmp_path / "server", ca)
    files = CertificateDirectory(tmp_path / "client", ca, "client.test")
    credentials = server_credentials(tmp_path / "server", require_client_certificate=True)
    async with (
        Backend.serving(credentials=credentials) as (backend, address),
        channel(address, tls=ClientTLS(directory=files.path)) as client,
    ):
        echo = client.unary_unary(ECHO)
        await echo(b"")
        first = backend.certificate
        files.replace(files.issue() | {"tls.key": b"no key"})
        await asyncio.sleep(0.05)
        await echo(b"")
        assert backend.certificate == first
        files.rotate()
        async with asyncio.timeout(20):
            while backend.certificate == first:
                await echo(b"")


async def test_follower_of_the_certificate_survives_any_exception(ca, tmp_path, monkeypatch):
    """After an error that nobody expected new certificates are taken as before, and the log has it."""
    monkeypatch.setattr("grpc_common.client.renewal._INTERVAL", 0.01)
    CertificateDirectory(tmp_path / "server", ca)
    files = CertificateDirectory(tmp_path / "client", ca, "client.test")
    credentials = server_credentials(tmp_path / "server", require_client_certificate=True)
    async with (
        Backend.serving(credentials=credentials) as (backend, address),
        channel(address, tls=ClientTLS(directory=files.path)) as client,
    ):
        echo = client.unary_unary(ECHO)
        await echo(b"")
        first, failed = backend.certificate, asyncio.Event()

        def fail(_tls: ClientTLS) -> None:
            failed.set()
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
            patch.setattr(ClientTLS, "fingerprint", fail)
            await failed.wait()
            await asyncio.sleep(0)
        files.rotate()
        async with asyncio.timeout(20):
            while backend.certificate == first:
                await echo(b"")
    assert [entry["task"] for entry in logs if entry["log_level"] == "error"] == [
        f"certificate of the channel to {address}"
    ]


async def test_unusable_certificate_files_are_refused_at_the_start(tmp_path):
    """Without certificates there is no channel, and the error is that of the files."""
    with pytest.raises(TlsError, match=r"ca\.crt"):
        await channel(KUBERNETES, tls=ClientTLS(directory=tmp_path), endpoints=FedEndpoints()).__aenter__()


def kubeconfig(url: str) -> dict:
    """Return a kubeconfig for the API server at `url`."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {"token": "secret"}}],
    }


async def test_kubernetes_target_follows_endpoint_slices(tmp_path, monkeypatch):
    """The endpoints of the target's service get the traffic, and a new one too."""
    async with (
        ApiServer().serve() as api,
        Backend.serving() as (first, address),
        Backend.serving(f"127.0.0.2:{address.rpartition(':')[2]}") as (second, other),
    ):
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        (tmp_path / "config").write_text(json.dumps(kubeconfig(api.url)))
        ports = [("grpc", int(other.rpartition(":")[2]))]
        api.put(endpoint_slice("backend-1", ["127.0.0.1"], service="backend", namespace="test", ports=ports))
        async with channel("kubernetes:///backend.test:grpc") as client:
            echo = client.unary_unary(ECHO)
            await echo(b"")
            assert first.calls == 1
            api.put(
                endpoint_slice("backend-2", ["127.0.0.2"], service="backend", namespace="test", ports=ports)
            )
            async with asyncio.timeout(20):
                while not second.calls:
                    await echo(b"")
