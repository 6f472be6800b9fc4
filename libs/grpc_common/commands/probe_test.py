import asyncio
import os
import socket
import sys
import tempfile
from contextlib import asynccontextmanager

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from grpc_common.commands.probe import command
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.tls.credentials import server_credentials

CA = trustme.CA()


async def python(*arguments: str) -> tuple[int | None, str, str]:
    """Run Python with this process's import path; return exit code, standard output and error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def probe(*arguments: str) -> tuple[int | None, str, str]:
    """Run the probe as a process of its own; a busy machine may need more than the second that it gives."""
    patience = ("--connect-timeout", "20s", "--rpc-timeout", "20s")
    return await python("-m", "grpc_common.commands.probe", *patience, *arguments)


@asynccontextmanager
async def serving(
    address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None, **statuses
):
    """Serve health with `statuses`; yield the port."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for service, status in {"": "SERVING", **statuses}.items():
        await servicer.set(service, health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_serving():
    """SERVING is exit code 0 and one line; a host is not needed, nor a second dash."""
    async with serving() as port:
        assert await probe("--addr", f"127.0.0.1:{port}") == (0, "status: SERVING\n", "")
        assert await probe(f"-addr=:{port}", "-service=") == (0, "status: SERVING\n", "")


@pytest.mark.parametrize(
    ("check", "code", "line"),
    [
        (lambda _: health_pb2.HealthCheckResponse(status=99), 4, 'unhealthy (responded with "99")'),
        (
            lambda context: context.abort(grpc.StatusCode.INTERNAL, "a\n\x1b[31mstatus: \u202e"),
            3,
            r"a\n\x1b[31m",
        ),
    ],
    ids=["unknown status", "control characters"],
)
async def test_server_says_odd_things(check, code, line):
    """What a server answers is one printable line, whatever it is."""

    class Servicer(health_pb2_grpc.HealthServicer):
        async def Check(self, _request, context):  # noqa: N802 (gRPC's)
            answer = check(context)
            return await answer if asyncio.iscoroutine(answer) else answer

    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found, _, err = await probe("-addr", f"127.0.0.1:{port}")
    await server.stop(None)
    assert found == code
    assert line in err
    assert err.removesuffix("\n").isprintable()


async def test_verbose():
    """With -v, in each way that Go writes a boolean, the times are said too."""
    async with serving() as port:
        for flag in ("-v", "--v", "-v=true", "-v=1", "--v=T"):
            code, out, _ = await probe(flag, "--addr", f"127.0.0.1:{port}")
            assert (code, out.partition("=")[0]) == (0, "time elapsed: connect")
        for flag in ("-v=false", "-v=0", "--v=F"):
            assert await probe("-v", flag, "-addr", f"127.0.0.1:{port}") == (0, "status: SERVING\n", "")


async def test_flags_as_go_has_them():
    """The last of several wins, `=` and empty values are understood, and what is off does not matter."""
    async with serving(database="NOT_SERVING") as port:
        flags = ("-addr", "nowhere:1", f"--addr=127.0.0.1:{port}", "-service", "database", "-service=")
        off = ("-tls=false", "-tls-ca-cert=", "-tls-server-name=", "-tls-no-verify=false", "-gzip=0")
        assert await probe(*flags, *off) == (0, "status: SERVING\n", "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5s", 1.5),
        ("1h2m3s", 3723),
        ("100us", 1e-4),
        ("1\xb5s", 1e-6),
        ("1\u03bcs", 1e-6),
        ("2ns", 2e-9),
        ("+1s", 1),
        (".5s", 0.5),
        ("1.s", 1),
        ("1m0.5s", 60.5),
        ("1s1s", 2),
    ],
)
def test_durations_as_go_has_them(text, seconds):
    """All that Go's time.ParseDuration reads is read as it does."""
    context = command.make_context("probe", ["-addr", "x", "-rpc-timeout", text])
    assert context.params["rpc_timeout"] == pytest.approx(seconds)


async def test_unix_socket():
    """A server on a Unix socket can be asked."""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long a name for a socket
        async with serving(f"unix:{folder}/socket"):
            assert (await probe("--addr", f"unix:{folder}/socket"))[0] == 0


async def test_not_serving():
    """Any status but SERVING is exit code 4."""
    async with serving(database="NOT_SERVING") as port:
        code, _, err = await probe("--addr", f"127.0.0.1:{port}", "--service", "database")
    assert (code, err) == (4, 'service unhealthy (responded with "NOT_SERVING")\n')


async def test_unknown_service():
    """A service that the server does not know is a failed call: exit code 3."""
    async with serving() as port:
        code, _, err = await probe("--addr", f"127.0.0.1:{port}", "--service", "none")
    assert code == 3
    assert "NOT_FOUND" in err


async def test_server_without_health():
    """A server without the health service is exit code 3, and said."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    code, _, err = await probe("--addr", f"127.0.0.1:{port}")
    await server.stop(None)
    assert code == 3
    assert "does not implement the grpc health protocol" in err


@asynccontextmanager
async def answering(check):
    """Serve `check` as the method of the health service; yield the port."""
    server = grpc.aio.server()
    handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


async def test_headers():
    """Headers and user agent reach the server."""
    received: dict[str, str] = {}

    async def check(_request: bytes, context) -> bytes:
        received.update(context.invocation_metadata())
        return health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()

    async with answering(check) as port:
        options = ("--user-agent", "kubelet", "--rpc-header", "X-Token: a:b")
        assert (await probe("--addr", f"127.0.0.1:{port}", *options))[0] == 0
    assert received["x-token"] == "a:b"
    assert received["user-agent"].startswith("kubelet")


async def test_call_that_takes_too_long():
    """A call without an answer in time is exit code 3."""

    async def hang(_request: bytes, _context) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with answering(hang) as port:
        code, _, err = await probe("--addr", f"127.0.0.1:{port}", "--rpc-timeout", "200ms")
    assert (code, err) == (3, "timeout: health rpc did not complete within 200ms\n")


async def test_refused_port():
    """Nobody there is exit code 2, with the reason."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    code, out, err = await probe("--addr", f"127.0.0.1:{port}", "--connect-timeout", "2s")
    assert (code, out) == (2, "")
    assert err.startswith(f'timeout: failed to connect service "127.0.0.1:{port}" within 2s: ')
    assert "Connection refused" in err


async def test_port_that_never_answers():
    """A peer that takes connections and says nothing is exit code 2 after the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        code, _, err = await probe("--addr", f"127.0.0.1:{port}", "--connect-timeout", "300ms")
    assert code == 2
    assert err == f'timeout: failed to connect service "127.0.0.1:{port}" within 300ms\n'


async def test_tls(tmp_path):
    """TLS needs the right CA, and the certificate the right name."""
    directory = CertificateDirectory(tmp_path / "server", CA, "user-service.default")
    stranger = CertificateDirectory(tmp_path / "other", trustme.CA())
    credentials = server_credentials(directory.path, require_client_certificate=False)
    async with serving(credentials=credentials) as port:
        address, soon = ("--addr", f"127.0.0.1:{port}"), ("--connect-timeout", "2s")
        tls = (*address, "--tls", "--tls-ca-cert")
        ours, theirs = str(directory.path / "ca.crt"), str(stranger.path / "ca.crt")
        name = ("--tls-server-name", "user-service.default")
        assert (await probe(*tls, ours, *name))[0] == 0
        code, _, err = await probe(*tls, ours, *soon)
        assert (code, "Hostname Verification" in err) == (2, True)
        code, _, err = await probe(*tls, theirs, *name, *soon)
        assert (code, "CERTIFICATE_VERIFY_FAILED" in err) == (2, True)
        assert (await probe(*address, *soon))[0] == 2


async def test_mutual_tls(tmp_path):
    """A server that wants a certificate gets it."""
    directory = CertificateDirectory(tmp_path / "server", CA)
    credentials = server_credentials(directory.path, require_client_certificate=True)
    certificate, key, ca = (str(directory.path / name) for name in ("tls.crt", "tls.key", "ca.crt"))
    async with serving(credentials=credentials) as port:
        tls = ("--addr", f"127.0.0.1:{port}", "--tls", "--tls-ca-cert", ca)
        assert (await probe(*tls, "--tls-client-cert", certificate, "--tls-client-key", key))[0] == 0
        assert (await probe(*tls, "--connect-timeout", "1s"))[0] == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "Missing option '-addr' / '--addr'"),
        (["-addr="], "--addr is empty"),
        (["--addr", "x", "--nope"], "No such option: -nope"),
        (["-addr", "x", "-nope=1"], "No such option: -nope"),
        (["-addr", "x", "-vv"], "No such option: -vv"),
        (["-addr", "x", "-\x1b[31m"], r"No such option: -\x1b[31m"),
        (["-addr", "x", "-"], "'-' is no flag"),
        (["-addr", "x", "--"], "'--' is no flag"),
        (["-addr", "x", "-=x"], "'-=x' is no flag"),
        (["-v", "true", "-addr", "x"], "'true' is no flag"),
        (["-addr"], "-addr needs a value"),
        (["-addr", "x", "-tls=yes"], "'yes': write true or false"),
        (["-addr", "x", "-v="], "'': write true or false"),
        (["-addr", "x", "-tls", "-tls-no-verify"], "-tls-no-verify is not supported: gRPC for Python"),
        (["-addr", "x", "-alts"], "-alts is not supported: "),
        (["-addr", "x", "-gzip=true"], "-gzip is not supported: "),
        (["-addr", "x", "--spiffe"], "-spiffe is not supported: "),
        (["--addr", "x", "--rpc-timeout", "5"], '"500ms"'),
        (["--addr", "x", "--rpc-timeout", "1d"], '"500ms"'),
        (["--addr", "x", "--rpc-timeout", ""], '"500ms"'),
        (["--addr", "x", "--connect-timeout", "0s"], "must be more than zero"),
        (["--addr", "x", "--connect-timeout", "0"], "must be more than zero"),
        (["--addr", "x", "--connect-timeout", "-1s"], "must be more than zero"),
        (["--addr", "x", "--connect-timeout", "9999999h"], "less than 292 years"),
        (["-addr", "x", "-service", "\udcff"], "is not UTF-8"),
        (["-addr", "x", "-user-agent", "a\nb"], r"'a\nb': write it in ASCII, on one line"),
        (["--addr", "x", "--rpc-header", "none"], 'write "name: value"'),
        (["--addr", "x", "--rpc-header", "trace-bin: x"], 'write "name: value"'),
        (["--addr", "x", "--rpc-header", "x: \n"], r"'x: \n'"),
        (["--addr", "x", "--tls-server-name", "x"], "need --tls"),
        (["--addr", "x", "--tls", "--tls-ca-cert", "/none"], "File '/none' does not exist"),
        (["--addr", "x", "--tls", "--tls-ca-cert", "/dev/null"], "failed to use /dev/null"),
        (["--addr", "x", "--tls", "--tls-client-key", "/dev/null"], "need each other"),
    ],
)
async def test_wrong_options(arguments, expected):
    """Wrong options are exit code 1, and what is wrong is said."""
    code, out, err = await probe(*arguments)
    assert (code, out) == (1, "")
    assert expected in err


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
async def test_help(flag):
    """--help is exit code 0."""
    code, out, _ = await probe(flag)
    assert code == 0
    assert "--tls-ca-cert" in out


async def test_imports_nothing_slow():
    """A probe runs every few seconds in every pod, so it does not import what it has no use for."""
    program = "import grpc_common.commands.probe, sys; print(*sys.modules)"
    code, out, err = await python("-c", program)
    assert code == 0, err
    slow = {"pydantic", "structlog", "prometheus_client", "opentelemetry", "cryptography", "yaml"}
    assert slow.isdisjoint(out.split())


async def test_relative_path_under_bazel_run(monkeypatch, tmp_path):
    """A path is the one that the user sees, where `bazel run` has changed the folder of the process."""
    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
    _, _, error = await probe("--addr", "x", "--tls", "--tls-ca-cert", "certs")
    assert f"File '{tmp_path}/certs' does not exist" in error
