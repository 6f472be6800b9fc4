"""What the three files may hold: each kind at a server's start, and at a rotation under load."""

import asyncio
import base64
import os
import ssl
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import prometheus_client
import pytest
import structlog
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

import grpc_common
from grpc_common.testing import configure
from grpc_common.testing.certificates import CertificateDirectory, issue
from grpc_common.tls.credentials import ClientTLS, TlsError, server_credentials

NOW = datetime.now(UTC).replace(microsecond=0)
ROOT = trustme.CA()
CA = ROOT.create_child_ca()
OTHER_CA = trustme.CA()
RSA = rsa.generate_private_key(65537, 2048)
EMPTY = b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"
EC_PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
P8, TRADITIONAL = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL

type Files = dict[str, bytes]


def good(end: datetime = NOW + timedelta(days=1)) -> Files:
    """Return the files of a certificate that an intermediate authority signed; its chain has two."""
    leaf = CA.issue_cert("localhost", not_after=end)
    crt = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return {"tls.crt": crt, "tls.key": key_pem(leaf_key(leaf)), "ca.crt": ROOT.cert_pem.bytes()}


def leaf_key(leaf: trustme.LeafCert):
    """Return the private key of `leaf`."""
    return load_pem_private_key(leaf.private_key_pem.bytes(), None)


def key_pem(key, form: PrivateFormat = P8, passphrase: bytes | None = None) -> bytes:
    """Return `key` as PEM."""
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, encryption)


def block(der: bytes, label: str = "CERTIFICATE") -> bytes:
    """Return a PEM block."""
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n".encode()


def split(chain: bytes) -> list[bytes]:
    """Return the certificates of a chain, each in PEM."""
    return [one.public_bytes(Encoding.PEM) for one in x509.load_pem_x509_certificates(chain)]


def crt(change: Callable[[bytes, bytes], bytes]) -> Callable[[Files], Files]:
    """Return what makes another tls.crt of the leaf and its intermediate."""
    return lambda files: files | {"tls.crt": change(*split(files["tls.crt"]))}


def key(change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    """Return what makes another tls.key."""
    return lambda files: files | {"tls.key": change(files["tls.key"])}


def ca(change: Callable[[bytes], bytes]) -> Callable[[Files], Files]:
    """Return what makes another ca.crt."""
    return lambda files: files | {"ca.crt": change(files["ca.crt"])}


def in_form(form: PrivateFormat, passphrase: bytes | None = None) -> Callable[[Files], Files]:
    """Return what writes the key in another form."""
    return key(lambda pem: key_pem(load_pem_private_key(pem, None), form, passphrase))


def of_key(private, form: PrivateFormat = P8) -> Callable[[Files], Files]:
    """Return what takes a certificate of `private` in place of the given one."""
    return lambda _: issue(ROOT, x509.DNSName("localhost"), key=private) | {"tls.key": key_pem(private, form)}


def with_extension(extension: x509.ExtensionType, *, critical: bool) -> Callable[[Files], Files]:
    """Return what takes a certificate with `extension`."""
    return lambda _: issue(ROOT, x509.DNSName("localhost"), extensions=[(extension, critical)])


def trusted(pem: bytes) -> bytes:
    """Return a certificate as `openssl x509 -trustout` writes it: with settings behind it."""
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    return block(der + b"\x30\x00", "TRUSTED CERTIFICATE")


def replaced(der: bytes, old: bytes, new: bytes, *elements: int) -> bytes:
    """Return `der` with `new` for its only `old`, which is in the elements that start at these places."""
    assert der.count(old) == 1
    changed = bytearray(der)
    for start in elements:
        assert changed[start : start + 2] == b"\x30\x82"
        length = int.from_bytes(changed[start + 2 : start + 4]) + len(new) - len(old)
        changed[start + 2 : start + 4] = length.to_bytes(2)
    return bytes(changed).replace(old, new)


def of_version_1(pem: bytes) -> bytes:
    """Return a certificate with extensions that says it is of version 1, which BoringSSL alone refuses."""
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    return block(replaced(der, bytes.fromhex("a003020102"), b"", 0, 4))


def badly_named(pem: bytes) -> bytes:
    """Return a certificate whose subject is not UTF-8, which BoringSSL alone refuses."""
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    return block(der.replace(b"Testing CA", b"\xff" * 10))


def for_pss_only(_: Files) -> Files:
    """Return a certificate whose key is for RSA-PSS only, which cryptography takes and BoringSSL does not."""
    files = of_key(RSA)({})
    der = x509.load_pem_x509_certificate(files["tls.crt"]).public_bytes(Encoding.DER)
    any_rsa = bytes.fromhex("300d06092a864886f70d0101010500")
    pss = bytes.fromhex("300b06092a864886f70d01010a")
    return files | {"tls.crt": block(replaced(der, any_rsa, pss, 0, 4, der.index(any_rsa) - 4))}


def small_rsa() -> rsa.RSAPrivateKey:
    """Return an RSA key of 511 bits, of two famous primes."""
    p, q, e = 2**255 - 19, 2**256 - 2**32 - 977, 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(e, p * q)
    crt_values = (rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q))
    return rsa.RSAPrivateNumbers(p, q, d, *crt_values, public).private_key()


def expired_extra(leaf: bytes, intermediate: bytes) -> bytes:
    """Return the chain with a certificate behind it that has expired."""
    old = OTHER_CA.issue_cert("old", not_after=NOW - timedelta(days=1)).cert_chain_pems[0].bytes()
    return leaf + intermediate + old


def key_usage(**allowed: bool) -> x509.KeyUsage:
    """Return a key usage with nothing but what is allowed."""
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**dict.fromkeys(names.split(), False) | allowed)


TEXT = b"Certificate:\n    Data:\n        Version: 3 (0x2)\n        Issuer: O = \xc3\xa4\n"

TAKEN = {
    "as cert-manager writes it": crt(lambda leaf, above: leaf + above),
    "joined without newline": crt(lambda leaf, above: leaf.rstrip() + above),
    "CRLF": crt(lambda leaf, above: (leaf + above).replace(b"\n", b"\r\n")),
    "CR": crt(lambda leaf, above: (leaf + above).replace(b"\n", b"\r")),
    "no newline at the end": crt(lambda leaf, above: (leaf + above).rstrip()),
    "text around": crt(lambda leaf, above: TEXT + leaf + b"# above:\n" + above + b"bye"),
    "byte order mark": crt(lambda leaf, above: b"\xef\xbb\xbf" + leaf + above),
    "NUL bytes around": crt(lambda leaf, above: b"\0" + leaf + b"\0\0\n" + above + b"\0"),
    "blank lines": crt(lambda leaf, above: (leaf + above).replace(b"\n", b"\n\n")),
    "trailing blanks": crt(lambda leaf, above: (leaf + above).replace(b"\n", b" \t\n")),
    "all in one line": crt(lambda leaf, above: (leaf + above).replace(b"\n", b"")),
    "TRUSTED CERTIFICATE": crt(lambda leaf, above: trusted(leaf) + trusted(above)),
    "X509 CERTIFICATE": crt(
        lambda leaf, above: leaf.replace(b" CERT", b" X509 CERT") + above.replace(b" CERT", b" X509 CERT")
    ),
    "duplicates": crt(lambda leaf, above: leaf + leaf + above + above),
    "other blocks between": crt(lambda leaf, above: leaf + EC_PARAMETERS + above),
    "key in tls.crt": lambda files: files | {"tls.crt": files["tls.key"].rstrip() + files["tls.crt"]},
    "expired extra certificate": crt(expired_extra),
    "PKCS #1": of_key(RSA, TRADITIONAL),
    "PKCS #8 of RSA": of_key(RSA),
    "P-384": of_key(ec.generate_private_key(ec.SECP384R1())),
    "SEC 1": in_form(TRADITIONAL),
    "EC PARAMETERS first": lambda files: key(lambda pem: EC_PARAMETERS + pem)(in_form(TRADITIONAL)(files)),
    "PKCS #8 with another label": key(lambda pem: pem.replace(b" PRIVATE", b" EC PRIVATE")),
    "key with CR": key(lambda pem: pem.replace(b"\n", b"\r")),
    "key after byte order mark": key(lambda pem: b"\xef\xbb\xbf" + pem),
    "several keys": key(lambda pem: pem + key_pem(RSA)),
    "certificate in tls.key": lambda files: files | {"tls.key": files["tls.crt"].rstrip() + files["tls.key"]},
    "CA:TRUE": with_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True),
    "1000 authorities": ca(lambda root: root * 999 + root.rstrip()),
    "two authorities joined": ca(lambda root: OTHER_CA.cert_pem.bytes().rstrip() + root),
    "authorities with CR": ca(lambda root: (OTHER_CA.cert_pem.bytes() + root).replace(b"\n", b"\r")),
}

REFUSED = {
    "empty": (crt(lambda _leaf, _above: b""), r"tls.crt: is not a certificate"),
    "empty block": (crt(lambda leaf, above: leaf + EMPTY + above), r"tls.crt: block 2 is empty"),
    "garbage block": (
        crt(lambda leaf, above: leaf + block(b"garbage") + above),
        r"tls.crt: certificate 2 can't be decoded",
    ),
    "not base64": (
        crt(lambda leaf, above: leaf + EMPTY.replace(b"\n", b"\n!!!!\n", 1) + above),
        r"tls.crt: block 2 is not base64",
    ),
    "NUL within": (
        crt(lambda leaf, _above: leaf.replace(b"MI", b"M\0I", 1)),
        r"tls.crt: block 1 is not base64",
    ),
    "cut off": (crt(lambda leaf, above: leaf + above[:200]), r"tls.crt: block 2 has no END line"),
    "damaged BEGIN": (
        crt(lambda leaf, above: leaf + above.replace(b"CATE-----", b"CATE----", 1)),
        r"tls.crt: block 2 has a damaged BEGIN line",
    ),
    "DER": (
        crt(lambda leaf, _above: base64.b64decode(b"".join(leaf.splitlines()[1:-1]))),
        r"tls.crt: is not a",
    ),
    "UTF-16": (crt(lambda leaf, _above: leaf.decode().encode("utf-16")), r"tls.crt: is not a certificate"),
    "10 MB of junk": (
        crt(lambda leaf, _above: b"-----BEGIN " * 10**6 + leaf),
        r"tls.crt: is larger than 4 MiB",
    ),
    "wrong order": (
        crt(lambda leaf, above: above + leaf),
        r"tls.key: is the key of certificate 2 in tls.crt, not of the first",
    ),
    "version 1 in the chain": (
        crt(lambda leaf, above: leaf + of_version_1(above)),
        r"tls.crt: certificate 2 has extensions, but says that it is of version 1",
    ),
    "RSA for PSS only": (
        for_pss_only,
        r"tls.crt: gRPC can't load the certificate \(an empty name\) with the key",
    ),
    "chain that no peer takes": (
        crt(lambda leaf, above: leaf + above * 300),
        r"tls.crt: has 301 certificates",
    ),
    "expired": (lambda _: good(NOW - timedelta(hours=1)), r"tls.crt: expired at"),
    "for clients only": (
        with_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False),
        r"tls.crt: is not for servers",
    ),
    "for encipherment only": (
        with_extension(key_usage(key_encipherment=True), critical=True),
        r"tls.crt: has a key usage without digital signature",
    ),
    "critical unknown extension": (
        with_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), critical=True
        ),
        r"tls.crt: has the critical extension 1\.2\.3\.4",
    ),
    "encrypted PKCS #8": (in_form(P8, b"x"), r"tls.key: is encrypted"),
    "encrypted SEC 1": (in_form(TRADITIONAL, b"x"), r"tls.key: is encrypted"),
    "OpenSSH": (in_form(PrivateFormat.OpenSSH), r"tls.key: is not a private key"),
    "DER key": (
        key(lambda pem: base64.b64decode(b"".join(pem.splitlines()[1:-1]))),
        r"tls.key: is not a private",
    ),
    "empty key block": (
        key(lambda pem: EMPTY.replace(b"CERTIFICATE", b"PRIVATE KEY") + pem),
        r"tls.key: block 1 is empty",
    ),
    "another key first": (key(lambda pem: key_pem(RSA) + pem), r"tls.key: is not the key of the certificate"),
    "P-521": (of_key(ec.generate_private_key(ec.SECP521R1())), r"tls.key: is of a kind that gRPC can't use"),
    "RSA of 511 bits": (of_key(small_rsa()), r"tls.key: has only 511 bits"),
    "no authorities": (ca(lambda _: b" \n"), r"ca.crt: is empty"),
    "garbage among authorities": (
        ca(lambda root: root + block(b"garbage") + root),
        r"ca.crt: certificate 2 can't be decoded",
    ),
    "authority of version 1": (
        ca(lambda root: root + of_version_1(root) + root),
        r"ca.crt: certificate 2 has extensions, but says that it is of version 1",
    ),
    "authority badly named": (
        ca(lambda root: root + badly_named(root)),
        r"ca.crt: certificate 2 has a name that can't be decoded",
    ),
}


@pytest.fixture
def directory(tmp_path: Path) -> CertificateDirectory:
    """Return a directory with good files."""
    directory = CertificateDirectory(tmp_path / "server", ROOT)
    directory.replace(good())
    return directory


@pytest.mark.parametrize("kind", TAKEN)
async def test_taken_at_start(directory, kind):
    """GRPC itself serves with what is taken."""
    directory.replace(TAKEN[kind](good()))
    credentials = server_credentials(directory.path, require_client_certificate=True)
    assert grpc.aio.server().add_secure_port("127.0.0.1:0", credentials)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_at_start(directory, kind):
    """What is refused is one line, which names the file and the reason."""
    change, reason = REFUSED[kind]
    directory.replace(change(good()))
    with pytest.raises(TlsError, match=rf"^{directory.path}/{reason}[^\n]*; [^\n]+$"):
        server_credentials(directory.path, require_client_certificate=True)


@pytest.mark.parametrize(
    "kind",
    [
        "RSA for PSS only",
        "version 1 in the chain",
        "chain that no peer takes",
        "for clients only",
        "for encipherment only",
        "critical unknown extension",
        "P-521",
        "RSA of 511 bits",
    ],
)
async def test_why_refused(kind):
    """What can be parsed is refused only if gRPC takes no port with it, or no client connects."""
    change, _ = REFUSED[kind]
    files = change(good())
    server = grpc.aio.server()
    unchecked = grpc.ssl_server_credentials([(files["tls.key"], files["tls.crt"])])
    try:
        port = server.add_secure_port("127.0.0.1:0", unchecked)
    except RuntimeError:
        return
    await server.start()
    trusting = grpc.ssl_channel_credentials(ROOT.cert_pem.bytes())
    async with grpc.aio.secure_channel(f"localhost:{port}", trusting) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Echo/Echo")(b"", timeout=20)
    await server.stop(None)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(Path.mkdir, "is a directory", id="directory"),
        pytest.param(os.mkfifo, "is not a regular file", id="named pipe"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), "is not a regular file", id="device"),
        pytest.param(lambda path: path.symlink_to(path), "too many levels of symbolic links", id="loop"),
    ],
)
@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_no_file(directory, name, make, reason):
    """What is no file is refused at once; a named pipe does not wait for a writer."""
    (directory.path / name).unlink()
    make(directory.path / name)
    with pytest.raises(TlsError, match=rf"^{directory.path}/{name}: {reason}; [^\n]+$"):
        server_credentials(directory.path, require_client_certificate=True)


@dataclass
class Load:
    """Counts calls, each over a connection of its own."""

    succeeded: int = 0
    failed: int = 0


@asynccontextmanager
async def load(port: int, tls: ClientTLS):
    """Call all the time during the block."""
    counts, ended = Load(), asyncio.Event()

    async def call() -> None:
        credentials = tls.credentials()
        options = [("grpc.use_local_subchannel_pool", 1)]
        while not ended.is_set():
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
                try:
                    await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
                    counts.succeeded += 1
                except grpc.aio.AioRpcError:
                    counts.failed += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(call())
        try:
            yield counts
        finally:
            ended.set()


async def served_serial(port: int, client: Path) -> int:
    """Shake hands; return the serial number of the server's certificate."""
    context = ssl.create_default_context(cafile=client / "ca.crt")
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the test's own certificates lack key identifiers
    context.load_cert_chain(client / "tls.crt", client / "tls.key")
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert()
    writer.close()
    return int(certificate["serialNumber"], 16)


def serial(files: Files, tls_key: bytes) -> int:
    """Return the serial number of the certificate in `files` that is of the key."""
    public = load_pem_private_key(tls_key, None).public_key()
    return next(
        one.serial_number
        for one in x509.load_pem_x509_certificates(files["tls.crt"])
        if one.public_key() == public
    )


def seconds_left(directory: Path) -> float:
    """Return what the metric says of a server's certificate."""
    labels = {"directory": str(directory), "use": "server"}
    value = prometheus_client.REGISTRY.get_sample_value("grpc_tls_certificate_expiry_seconds", labels)
    assert value is not None
    return value


def server_config(directory: Path) -> grpc_common.ServerConfig:
    """Return the configuration of a server with mutual TLS."""
    tls = {"directory": str(directory), "require_client_certificate": True}
    return configure(server={"tls": tls})


async def test_rotation_under_load(directory, tmp_path):
    """Each kind is served, or the last one stays; no call fails, log and metric tell the truth."""
    client = CertificateDirectory(tmp_path / "client", ROOT, "client")
    kinds = [(kind, change, None) for kind, change in TAKEN.items()]
    # Refused ones between taken ones, so that each must leave another certificate in use.
    for at, (kind, (change, reason)) in enumerate(REFUSED.items()):
        kinds.insert(2 * at + 1, (kind, change, reason))
    server = grpc_common.Server(server_config(directory.path))
    in_use = None
    async with server.serving() as port, load(port, ClientTLS(client.path)) as counts:
        for number, (kind, change, reason) in enumerate(kinds, 2):
            files = change(good(NOW + timedelta(days=number)))
            with structlog.testing.capture_logs() as logs:
                directory.replace(files)
                served = await served_serial(port, client.path)
                left = seconds_left(directory.path)
            logs = [entry for entry in logs if "certificate" in entry["event"]]
            if reason is None:
                assert logs[-1]["event"] == "new certificate", kind
                assert served != in_use, kind
                in_use, end = served, datetime.fromisoformat(logs[-1]["not_after"])
            else:
                (entry,) = logs
                assert entry["event"] == "new certificate refused, the old one stays in use", kind
                assert len(entry["reasons"]) == 1, kind
                assert served == in_use, kind
            assert left == pytest.approx((end - datetime.now(UTC)).total_seconds(), abs=30), kind
            seen = counts.succeeded
            async with asyncio.timeout(20):
                while counts.succeeded < seen + 3:
                    await asyncio.sleep(0.01)
    assert counts.failed == 0
