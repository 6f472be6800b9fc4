import asyncio
import os
import ssl
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import TLSVersion
from unittest.mock import Mock

import grpc
import prometheus_client
import pytest
import structlog
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from grpc_common.testing.certificates import CertificateDirectory, issue
from grpc_common.tls import credentials, files
from grpc_common.tls.credentials import ClientTLS, TlsError, server_credentials

CA = trustme.CA()


@pytest.fixture
def directory(tmp_path) -> CertificateDirectory:
    """Return the server's directory."""
    return CertificateDirectory(tmp_path / "server", CA)


@pytest.fixture
def ca_only(tmp_path):
    """Return a client's directory without a certificate."""
    directory = CertificateDirectory(tmp_path / "ca_only", CA)
    directory.replace({"ca.crt": CA.cert_pem.bytes()})
    return directory.path


async def echo(request: bytes, _context) -> bytes:
    """Answer with the request."""
    return request


@asynccontextmanager
async def serving(directory: CertificateDirectory, *, require_client_certificate: bool = False):
    """Serve with the certificate in `directory`; yield the port."""
    ours = server_credentials(directory.path, require_client_certificate=require_client_certificate)
    async with serving_with(ours) as port:
        yield port


@asynccontextmanager
async def serving_with(used: grpc.ServerCredentials):
    """Serve with the credentials `used`; yield the port."""
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    )
    server.add_generic_rpc_handlers([handler])
    port = server.add_secure_port("127.0.0.1:0", used)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(port: int, tls: ClientTLS) -> None:
    """Make one call over a connection of its own."""
    options: list[tuple[str, str | int]] = [("grpc.use_local_subchannel_pool", 1)]
    if tls.server_name:
        options.append(("grpc.default_authority", tls.server_name))
    async with grpc.aio.secure_channel(f"localhost:{port}", tls.credentials(), options) as channel:
        assert await channel.unary_unary("/test.Echo/Echo")(b"hello", timeout=5) == b"hello"


async def refused(port: int, tls: ClientTLS) -> str:
    """Make a call that must fail; return why."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(port, tls)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    return caught.value.details() or ""


async def handshake(port: int, **versions) -> tuple[str, int]:
    """Shake hands as OpenSSL does it; return the TLS version and the certificate's serial number."""
    context = ssl.create_default_context(cadata=CA.cert_pem.bytes().decode())
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # lets OpenSSL offer what is too old
    context.set_alpn_protocols(["h2"])
    for name, version in versions.items():
        setattr(context, name, version)
    _reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    socket = writer.get_extra_info("ssl_object")
    writer.close()
    return socket.version(), int(socket.getpeercert()["serialNumber"], 16)


def serial(files: dict[str, bytes]) -> int:
    """Return the serial number of the certificate in `files`."""
    return x509.load_pem_x509_certificate(files["tls.crt"]).serial_number


def renew(directory: CertificateDirectory) -> int:
    """Rotate; return the new serial number."""
    files = directory.issue()
    directory.replace(files)
    return serial(files)


async def test_tls(directory, ca_only):
    """The server's certificate is checked with ca.crt; the client needs none of its own."""
    async with serving(directory) as port:
        await call(port, ClientTLS(ca_only))


async def test_mutual_tls(directory, ca_only, tmp_path):
    """Only a client with a certificate of the CA gets in."""
    client = CertificateDirectory(tmp_path / "client", CA, "client.example.com")
    stranger = CertificateDirectory(tmp_path / "stranger", trustme.CA(), "client.example.com")
    stranger.replace(stranger.issue() | {"ca.crt": CA.cert_pem.bytes()})
    async with serving(directory, require_client_certificate=True) as port:
        await call(port, ClientTLS(client.path))
        await refused(port, ClientTLS(ca_only))
        await refused(port, ClientTLS(stranger.path))


async def test_server_of_another_authority(directory, tmp_path):
    """A client does not talk to a server whose certificate its ca.crt has not signed."""
    other = CertificateDirectory(tmp_path / "other", trustme.CA())
    async with serving(directory) as port:
        assert "CERTIFICATE_VERIFY_FAILED" in await refused(port, ClientTLS(other.path))
        await refused(port, ClientTLS())


async def test_server_name(tmp_path, ca_only):
    """A server whose certificate does not have the target's host is checked for the name that is given."""
    directory = CertificateDirectory(tmp_path / "named", CA, "user-service.default")
    async with serving(directory) as port:
        await refused(port, ClientTLS(ca_only))
        await call(port, ClientTLS(ca_only, server_name="user-service.default"))
        await refused(port, ClientTLS(ca_only, server_name="other.default"))


async def test_old_versions_are_refused(directory):
    """TLS 1.2 and 1.3 are spoken, TLS 1.1 is not."""
    async with serving(directory) as port:
        assert (await handshake(port))[0] == "TLSv1.3"
        assert (await handshake(port, maximum_version=TLSVersion.TLSv1_2))[0] == "TLSv1.2"
        # gRPC resets the connection; OpenSSL's own refusal would be an ssl.SSLError.
        with pytest.warns(DeprecationWarning, match="TLSv1"), pytest.raises(ConnectionResetError):
            await handshake(port, minimum_version=TLSVersion.TLSv1, maximum_version=TLSVersion.TLSv1_1)


@pytest.mark.parametrize(
    ("key", "usable"),
    [
        pytest.param(rsa.generate_private_key(65537, 2048), True, id="RSA"),
        pytest.param(ec.generate_private_key(ec.SECP256R1()), True, id="P-256"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), True, id="P-384"),
        pytest.param(ec.generate_private_key(ec.SECP521R1()), False, id="P-521"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), False, id="Ed25519"),
    ],
)
async def test_kinds_of_keys(directory, ca_only, key, usable):
    """The kinds of keys that are refused at start are those with which no handshake would succeed."""
    files = issue(CA, x509.DNSName("localhost"), key=key)
    directory.replace(files)
    if usable:
        async with serving(directory) as port:
            await call(port, ClientTLS(ca_only))
    else:
        with pytest.raises(TlsError, match="kind"):
            server_credentials(directory.path, require_client_certificate=False)
        unchecked = grpc.ssl_server_credentials([(files["tls.key"], files["tls.crt"])])
        async with serving_with(unchecked) as port:
            await refused(port, ClientTLS(ca_only))


def test_bad_files_at_start(directory):
    """A server does not start with files that can't be used."""
    directory.replace({"tls.crt": b"bad", "tls.key": directory.issue()["tls.key"]})
    with pytest.raises(TlsError) as caught:
        server_credentials(directory.path, require_client_certificate=True)
    assert [line.rpartition("/")[2].partition(":")[0] for line in str(caught.value).splitlines()] == [
        "tls.crt",
        "ca.crt",
    ]


async def test_hundred_rotations_under_new_connections(directory, tmp_path):
    """Each new certificate is served at once, and no connection that is made meanwhile fails."""
    client = ClientTLS(CertificateDirectory(tmp_path / "client", CA, "client").path)
    calls = 0

    async def connect_until(ended: asyncio.Event) -> None:
        nonlocal calls
        while not ended.is_set():
            await call(port, client)
            calls += 1

    # OpenSSL presents no certificate, so its handshakes go to a second port.
    async with serving(directory, require_client_certificate=True) as port, serving(directory) as other_port:
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(connect_until(ended))
            for _ in range(100):
                expected = renew(directory)
                assert (await handshake(other_port))[1] == expected
                await call(port, client)
            ended.set()
    assert calls > 100


async def test_authority_is_rotated(directory, tmp_path):
    """A new ca.crt lets in the clients of the new authority, and the old ones no more."""
    new = trustme.CA()
    client = CertificateDirectory(tmp_path / "client", new, "client")
    client.replace(client.issue() | {"ca.crt": CA.cert_pem.bytes()})
    async with serving(directory, require_client_certificate=True) as port:
        await call(port, ClientTLS(directory.path))
        await refused(port, ClientTLS(client.path))
        old = CertificateDirectory(tmp_path / "old", CA, "client")
        directory.replace(directory.issue() | {"ca.crt": new.cert_pem.bytes()})
        await call(port, ClientTLS(client.path))
        await refused(port, ClientTLS(old.path))


async def test_files_replaced_one_after_the_other(tmp_path):
    """Between a new certificate and its key the old pair is served."""
    path = tmp_path / "plain"
    directory = CertificateDirectory(tmp_path / "server", CA)
    path.mkdir()
    for name, content in directory.issue().items():
        (path / name).write_bytes(content)
    directory.path = path
    new = directory.issue()
    async with serving(directory) as port:
        _, old_serial = await handshake(port)
        (path / "tls.crt").write_bytes(new["tls.crt"])
        assert (await handshake(port))[1] == old_serial
        (path / "tls.key").write_bytes(new["tls.key"])
        assert (await handshake(port))[1] == serial(new) != old_serial


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda directory: directory.replace({}), id="removed"),
        pytest.param(lambda directory: directory.replace(directory.issue() | {"tls.key": b""}), id="empty"),
        pytest.param(
            lambda directory: directory.rotate(not_after=datetime.now(UTC) - timedelta(1)), id="expired"
        ),
    ],
)
async def test_bad_new_files(directory, change):
    """They are logged once, the old certificate is served, and good ones after them are taken."""
    async with serving(directory) as port:
        _, old_serial = await handshake(port)
        with structlog.testing.capture_logs() as logs:
            change(directory)
            for _ in range(3):
                assert (await handshake(port))[1] == old_serial
            expected = renew(directory)
            assert (await handshake(port))[1] == expected
    refusal, success = logs
    assert (refusal["event"], refusal["log_level"]) == (
        "new certificate refused, the old one stays in use",
        "error",
    )
    assert all(reason.startswith(str(directory.path)) for reason in refusal["reasons"])
    assert (success["event"], success["log_level"]) == ("new certificate", "info")


async def test_certificate_of_the_near_future(directory):
    """A certificate that is not valid yet is served as soon as it is."""
    async with serving(directory) as port:
        _, served = await handshake(port)
        not_before = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
        directory.replace(new := directory.issue(not_before=not_before))
        _, meanwhile = await handshake(port)
        # On a busy machine the handshake may have come too late to tell.
        assert meanwhile == served or datetime.now(UTC) >= not_before
        async with asyncio.timeout(20):
            while served != serial(new):
                # OpenSSL's clock may lag by some milliseconds.
                with suppress(ssl.SSLCertVerificationError):
                    _, served = await handshake(port)


async def test_replaced_while_they_are_read(directory, monkeypatch):
    """Bad files that come while the old ones are looked at are refused once, by the next handshake."""
    async with serving(directory) as port:
        real = files.file_version

        def meanwhile(status: os.stat_result) -> object:
            monkeypatch.setattr(files, "file_version", real)
            version = real(status)
            directory.replace({"tls.crt": b"bad", "tls.key": b"bad"})
            return version

        with structlog.testing.capture_logs() as logs:
            monkeypatch.setattr(files, "file_version", meanwhile)
            for _ in range(3):
                await handshake(port)
    (refusal,) = logs
    assert refusal["event"] == "new certificate refused, the old one stays in use"


async def test_broken_check_of_new_files(directory, monkeypatch):
    """Whatever goes wrong with new files, the old certificate is served, and the log has it once."""
    broken = Mock(side_effect=RuntimeError("a bug"))
    async with serving(directory) as port:
        _, old_serial = await handshake(port)
        expected = renew(directory)
        with monkeypatch.context() as patch, structlog.testing.capture_logs() as logs:
            patch.setattr(credentials, "load", broken)
            patch.setattr(credentials, "_RETRY", 0)
            for _ in range(3):
                assert (await handshake(port))[1] == old_serial
        assert (await handshake(port))[1] == expected
    assert broken.call_count > 1
    (refusal,) = logs
    assert (refusal["event"], refusal["reasons"]) == (
        "new certificate refused, the old one stays in use",
        ["RuntimeError('a bug')"],
    )


def expiry(directory: CertificateDirectory, use: str = "server") -> float | None:
    """Return the metric's value for `directory`."""
    labels = {"directory": str(directory.path), "use": use}
    return prometheus_client.REGISTRY.get_sample_value("grpc_tls_certificate_expiry_seconds", labels)


def serve_from(directory: CertificateDirectory) -> grpc.ServerCredentials:
    """Return a server's credentials."""
    return server_credentials(directory.path, require_client_certificate=False)


def expire_in(hours: int, directory: CertificateDirectory) -> None:
    """Rotate to a certificate of some hours."""
    directory.rotate(not_after=datetime.now(UTC) + timedelta(hours=hours))


def test_expiry_of_server_and_client_of_one_directory(directory):
    """Each has its series: a channel keeps its certificate, the server has the new one."""
    expire_in(1, directory)
    server, client = serve_from(directory), ClientTLS(directory.path).credentials()
    expire_in(2, directory)
    assert expiry(directory, "server") == pytest.approx(7200, abs=30)
    assert expiry(directory, "client") == pytest.approx(3600, abs=30)
    del server
    assert expiry(directory, "server") is None
    assert expiry(directory, "client") == pytest.approx(3600, abs=30)
    del client
    assert expiry(directory, "client") is None


def test_expiry_of_several_channels(directory):
    """The series is of the certificate that expires first, and stays until the last channel is closed."""
    expire_in(1, directory)
    old = ClientTLS(directory.path).credentials()
    expire_in(2, directory)
    new = ClientTLS(directory.path).credentials()
    assert expiry(directory, "client") == pytest.approx(3600, abs=30)
    del old
    assert expiry(directory, "client") == pytest.approx(7200, abs=30)
    del new
    assert expiry(directory, "client") is None


def test_expiry_ignores_refused_files(directory):
    """The series is of the certificate in use, not of the one in the files."""
    expire_in(1, directory)
    used = serve_from(directory)
    files = directory.issue(not_after=datetime.now(UTC) + timedelta(hours=2))
    directory.replace(files | {"tls.key": b"bad"})
    assert expiry(directory) == pytest.approx(3600, abs=30)
    directory.replace(files)
    assert expiry(directory) == pytest.approx(7200, abs=30)
    assert used


async def test_expired_certificate_in_the_chain(directory, ca_only):
    """It is served as Go does, with a warning that says which one; the metric is of the first."""
    expire_in(1, directory)
    old = CA.issue_cert("old", common_name="Old", not_after=datetime(2025, 2, 3, tzinfo=UTC))
    files = directory.issue(not_after=datetime.now(UTC) + timedelta(hours=2))
    async with serving(directory) as port:
        used = serve_from(directory)
        with structlog.testing.capture_logs() as logs:
            directory.replace(files | {"tls.crt": files["tls.crt"] + old.cert_chain_pems[0].bytes()})
            await call(port, ClientTLS(ca_only))
            assert expiry(directory) == pytest.approx(7200, abs=30)
    assert used
    reason = logs[0]["reasons"][0]
    assert logs[0]["log_level"] == "warning"
    assert reason.startswith(f"{directory.path}/tls.crt: certificate 2 of the chain (CN=Old,")
    assert "expired at 2025-02-03T00:00:00Z" in reason


def open_files() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_checks_leave_nothing_open(directory):
    """Certificates may be taken for ever: no descriptor stays open."""
    used = serve_from(directory)
    before = open_files()
    for _ in range(30):
        directory.rotate()
        assert expiry(directory)
    async with asyncio.timeout(20):
        while open_files() > before + 10:
            await asyncio.sleep(0.05)
    assert used


@pytest.mark.parametrize("usage", ["server", "client"])
async def test_client_whose_certificate_is_for(directory, tmp_path, usage):
    """A client presents only what servers take for a client's."""
    purpose = {
        "server": ExtendedKeyUsageOID.SERVER_AUTH,
        "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    extension = (x509.ExtendedKeyUsage([purpose[usage]]), False)
    client = CertificateDirectory(tmp_path / "client", CA)
    client.replace(issue(CA, x509.DNSName("client"), extensions=[extension]))
    if usage == "server":
        with pytest.raises(TlsError, match=r"tls\.crt: is not for clients; add client auth"):
            ClientTLS(client.path).credentials()
    else:
        async with serving(directory, require_client_certificate=True) as port:
            await call(port, ClientTLS(client.path))


async def test_client_with_files_that_only_we_can_read(directory, tmp_path):
    """What gRPC's own reader refuses is encoded anew for clients too."""
    client = CertificateDirectory(tmp_path / "client", CA, "client")
    client.replace({name: text.replace(b"\n", b"\r") for name, text in client.issue().items()})
    async with serving(directory, require_client_certificate=True) as port:
        await call(port, ClientTLS(client.path))


def test_client_with_half_a_certificate(directory):
    """A certificate without its key is a mistake, not a client without one."""
    files = directory.issue()
    directory.replace({name: files[name] for name in ("tls.crt", "ca.crt")})
    with pytest.raises(TlsError, match=r"tls\.key: no such file"):
        ClientTLS(directory.path).credentials()


def test_client_fingerprint(directory):
    """It changes with the files, and without a directory never."""
    tls = ClientTLS(directory.path)
    before = tls.fingerprint()
    assert tls.fingerprint() == before
    directory.rotate()
    assert tls.fingerprint() != before
    assert ClientTLS().fingerprint() == ClientTLS().fingerprint()
