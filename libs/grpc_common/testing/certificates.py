"""For tests of TLS: a directory of certificates that changes as cert-manager's do in a pod."""

import ipaddress
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from grpc_common.config.callers import San, SanKind

LOOPBACK = ("localhost", "127.0.0.1")


class CertificateDirectory:
    """Holds tls.crt, tls.key and ca.crt as the kubelet mounts a Secret: all replaced in one step.

    The files are symlinks to `..data/<name>`, and `..data` is a symlink to a directory that
    every change replaces. The first certificate is there once the object is.

    Args:
        path: where; it is made, and must not exist.
        ca: signs the certificates, and is what ca.crt holds.
        identities: the subject alternative names; `localhost` and `127.0.0.1` if none are given.

    """

    def __init__(self, path: Path, ca: trustme.CA, *identities: str) -> None:
        self.path = path
        self.ca = ca
        self.identities = identities or LOOPBACK
        path.mkdir()
        self.rotate()

    def rotate(self, *, not_before: datetime | None = None, not_after: datetime | None = None) -> None:
        """Replace certificate and key by new ones of the same CA; ca.crt too if `self.ca` is another."""
        self.replace(self.issue(not_before=not_before, not_after=not_after))

    def issue(
        self, *, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> dict[str, bytes]:
        """Return the files of a new certificate: {name: content}."""
        leaf = self.ca.issue_cert(*self.identities, not_before=not_before, not_after=not_after)
        return {
            "tls.crt": b"".join(blob.bytes() for blob in leaf.cert_chain_pems),
            "tls.key": leaf.private_key_pem.bytes(),
            "ca.crt": self.ca.cert_pem.bytes(),
        }

    def replace(self, files: Mapping[str, bytes]) -> None:
        """Replace everything by `files` in one step, as the kubelet does."""
        data = self.path / "..data"
        old = data.resolve() if data.is_symlink() else None
        new = Path(tempfile.mkdtemp(prefix="..", dir=self.path))
        for name, content in files.items():
            (new / name).write_bytes(content)
        temporary = self.path / "..data_tmp"
        temporary.symlink_to(new.name)
        temporary.rename(data)
        self._link(files)
        if old:
            shutil.rmtree(old)

    def _link(self, files: Mapping[str, bytes]) -> None:
        for entry in self.path.iterdir():
            if not entry.name.startswith("..") and entry.name not in files:
                entry.unlink()
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(Path("..data") / name)


def mutual_tls(folder: Path, client: str) -> tuple[Path, Path]:
    """Make the directories of a server on this machine and of a client, of one new authority; return both.

    Args:
        folder: where.
        client: the client's SAN, written as in `server.allowed_callers`.

    Raises:
        ValueError: it is no SAN.

    """
    name = _general_name(client)
    ca = trustme.CA()
    directories = CertificateDirectory(folder / "server", ca), CertificateDirectory(folder / "client", ca)
    directories[1].replace(issue(ca, name))
    return directories[0].path, directories[1].path


def _general_name(text: str) -> x509.GeneralName:
    try:
        kind, value = San.parse(text)
    except ValueError:
        form = "write a DNS name, a URI, an IP address or an e-mail address"
        raise ValueError(f"{text!r} can't be in a certificate; {form}") from None
    match kind:
        case SanKind.URI:
            return x509.UniformResourceIdentifier(value)
        case SanKind.IP:
            return x509.IPAddress(ipaddress.ip_address(value))
        case SanKind.EMAIL:
            return x509.RFC822Name(value)
    return x509.DNSName(value)


def issue(
    ca: trustme.CA,
    *names: x509.GeneralName,
    key: CertificateIssuerPrivateKeyTypes | None = None,
    san: x509.ExtensionType | None = None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> dict[str, bytes]:
    """Return the files of a certificate that trustme can't make.

    It is valid for an hour, has SANs of any kind (`san` in the place of `names`) and a key of any kind.
    Each of `extensions` has with it whether it is critical.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    signer = load_pem_private_key(ca.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.load_pem_x509_certificate(ca.cert_pem.bytes()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(san or x509.SubjectAlternativeName(names), critical=True)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(signer, SHA256())
    return {
        "tls.crt": certificate.public_bytes(Encoding.PEM),
        "tls.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "ca.crt": ca.cert_pem.bytes(),
    }
