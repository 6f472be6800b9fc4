"""The files tls.crt, tls.key and ca.crt of one directory: read, checked, and seen to change."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from grpc_common.core.errors import StartError

if TYPE_CHECKING:  # imported where it is used: 60 ms that nobody without TLS should pay
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

CERTIFICATE = "tls.crt"
KEY = "tls.key"
CA = "ca.crt"

# Measured with grpcio 1.85: with any other kind either no port is bound or every handshake fails.
_CURVES = ("secp256r1", "secp384r1")

_NEVER = datetime.max.replace(tzinfo=UTC)


class TlsError(StartError):
    """The certificate files can't be used; the text names every mistake, one a line."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """The checked content of a directory; None is what was not asked for."""

    certificate: bytes | None
    """tls.crt: the certificate, then those of its chain; PEM."""

    key: bytes | None = field(repr=False)
    """tls.key: the private key of the first certificate; PEM."""

    ca: bytes | None
    """ca.crt: the certificates that must have signed those of the other side; PEM."""

    not_after: datetime
    """When tls.crt expires, that is the first of its certificates to do so; the end of time without one."""


def load(directory: Path, *, key: bool, ca: bool) -> Certificates:
    """Read and check the files in `directory`.

    Args:
        directory: where the files are.
        key: whether tls.crt and tls.key are needed.
        ca: whether ca.crt is needed.

    Raises:
        TlsError: a file is missing, unreadable, not PEM, expired or not yet valid, or the key is
            encrypted, of a kind that gRPC can't use, or not that of the certificate.

    """
    while True:
        before = signature(directory)
        try:
            return _load(directory, key=key, ca=ca)
        except TlsError:
            # If the files changed while they were read, what was read is not what is there.
            if signature(directory) == before:
                raise


def signature(directory: Path) -> object:
    """Return a value that differs once any of the files has changed; takes microseconds."""
    return tuple(_file_signature(f"{directory}/{name}") for name in (CERTIFICATE, KEY, CA))


def _file_signature(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (half the time of Path.stat, and this is once a handshake)
    except OSError:
        return None
    # The change time, unlike that of modification, tells of a new mode too and is not copied with a file.
    return status.st_ino, status.st_size, status.st_ctime_ns


def _load(directory: Path, *, key: bool, ca: bool) -> Certificates:
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "no such directory"
        raise _error(directory, what, f"mount the Secret that has {CERTIFICATE}, {KEY} and {CA} there")
    mistakes: list[str] = []

    def attempt[Read](read: Callable[[Path], Read], name: str) -> Read | None:
        try:
            return read(directory / name)
        except TlsError as error:
            mistakes.append(str(error))
            return None

    chain = attempt(_read_chain, CERTIFICATE) if key else None
    private = attempt(_read_key, KEY) if key else None
    bundle = attempt(_read_ca, CA) if ca else None
    if chain and private and chain[1][0].public_key() != private[1].public_key():
        advice = "replace both with the files of one issuance"
        mistakes.append(
            str(_error(directory / KEY, f"is not the key of the certificate in {CERTIFICATE}", advice))
        )
    if mistakes:
        raise TlsError("\n".join(mistakes))
    not_after = min(certificate.not_valid_after_utc for certificate in chain[1]) if chain else _NEVER
    return Certificates(chain and chain[0], private and private[0], bundle, not_after)


def _read_chain(path: Path) -> tuple[bytes, Sequence[x509.Certificate]]:
    pem = _read(path)
    chain = _parse_certificates(path, pem)
    for certificate in chain:
        if not _is_current(certificate):
            raise _date_error(path, certificate)
    return pem, chain


def _read_ca(path: Path) -> bytes:
    pem = _read(path)
    if not pem.strip():
        advice = "it needs the CA of the other side's certificates (ACME issuers, for one, give none)"
        raise _error(path, "is empty", advice)
    bundle = _parse_certificates(path, pem)
    # While a CA is replaced, the old and the new one are both there, and one may be out of its time.
    if not any(_is_current(certificate) for certificate in bundle):
        raise _date_error(path, bundle[0])
    return pem


def _read_key(path: Path) -> tuple[bytes, PrivateKeyTypes]:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415 (see the module's imports)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    pem = _read(path)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise _error(path, "is encrypted", "store the key without a passphrase") from None
    except Exception:  # noqa: BLE001 (whatever it is, its text may quote the key)
        raise _error(path, "is not a private key", "it must be PEM: -----BEGIN PRIVATE KEY-----") from None
    if isinstance(key, rsa.RSAPrivateKey):
        return pem, key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return pem, key
    raise _error(path, "is of a kind that gRPC can't use", "it must be RSA, ECDSA P-256 or ECDSA P-384")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except PermissionError:
        advice = f"user {os.geteuid()} must be able to read it: see fsGroup and defaultMode"
        raise _error(path, "permission denied", advice) from None
    except OSError as error:
        reason = (error.strerror or "can't be read").lower()
        raise _error(path, reason, "it must be a PEM file, as in the Secrets of cert-manager") from None


def _parse_certificates(path: Path, pem: bytes) -> Sequence[x509.Certificate]:
    from cryptography import x509  # noqa: PLC0415 (see the module's imports)

    try:
        return x509.load_pem_x509_certificates(pem)
    except Exception:  # noqa: BLE001 (more types than its documentation names)
        raise _error(path, "is not a certificate", "it must be PEM: -----BEGIN CERTIFICATE-----") from None


def _is_current(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc


def _date_error(path: Path, certificate: x509.Certificate) -> TlsError:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return _error(path, f"expired at {_utc(certificate.not_valid_after_utc)}", "renew the certificate")
    what = f"is not valid before {_utc(certificate.not_valid_before_utc)}"
    return _error(path, what, f"wait, or set the clock, by which it is {_utc(now)}")


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _error(path: Path, what: str, advice: str) -> TlsError:
    shown = str(path) if str(path).isprintable() else repr(str(path))
    return TlsError(f"{shown}: {what}; {advice}")
