"""The files tls.crt, tls.key and ca.crt of one directory: read, checked, and seen to change."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from grpc_common.core.errors import StartError
from grpc_common.core.file_version import file_version
from grpc_common.tls import checks, proof
from grpc_common.tls.pem import Block, PemError, read_blocks

if TYPE_CHECKING:  # imported where it is used: 60 ms that nobody without TLS should pay
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from grpc_common.tls.expiry import Use

CERTIFICATE = "tls.crt"
KEY = "tls.key"
CA = "ca.crt"

# What OpenSSL and C-core read as a certificate; the last one has settings of OpenSSL behind it.
_CERTIFICATE_LABELS = ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")

_KEY_LABELS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY")

_LARGEST_FILE = 4 * 1024 * 1024
"""Bytes; four times what a Secret can hold, and room for 1000 authorities of any kind."""

_FILE_ADVICE = "it must be a PEM file, as in the Secrets of cert-manager"

_LONGEST_CHAIN = 100 * 1024
"""Bytes of DER; BoringSSL and OpenSSL take no longer message with certificates from a peer."""

_NEVER = datetime.max.replace(tzinfo=UTC)


class TlsError(StartError):
    """The certificate files can't be used; the text names every mistake, one a line."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """The checked content of a directory; None is what was not asked for.

    All is PEM as gRPC reads it, encoded anew: what the files hold may be laid out in other ways.
    """

    certificate: bytes | None
    """tls.crt: the certificate, then those of its chain."""

    key: bytes | None = field(repr=False)
    """tls.key: the private key of the first certificate, in PKCS #8."""

    ca: bytes | None
    """ca.crt: the certificates that must have signed those of the other side."""

    not_after: datetime
    """When the first certificate of tls.crt expires; the end of time without one."""

    warnings: Sequence[str] = ()
    """What is wrong but no reason to refuse: a certificate of the chain that is out of its time."""


def load(directory: Path, *, key: bool, ca: bool, use: Use) -> Certificates:
    """Read and check the files in `directory`, and have gRPC load the certificate.

    Args:
        directory: where the files are.
        key: whether tls.crt and tls.key are needed.
        ca: whether ca.crt is needed.
        use: the side that presents the certificate.

    Raises:
        TlsError: a file is missing, unreadable, not PEM, expired or not yet valid, the key is encrypted, of
            a kind that gRPC can't use, or not that of the certificate, the certificate is not for this
            use, or gRPC can't load it.

    """
    while True:
        before = fingerprint(directory)
        try:
            return _load(directory, key=key, ca=ca, use=use)
        except TlsError:
            # If the files changed while they were read, what was read is not what is there.
            if fingerprint(directory) == before:
                raise


def fingerprint(directory: Path) -> object:
    """Return a value that differs once any of the files has changed; takes microseconds."""
    return tuple(_file_fingerprint(f"{directory}/{name}") for name in (CERTIFICATE, KEY, CA))


def _file_fingerprint(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (half the time of Path.stat, and this is once a handshake)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return file_version(status)


def _load(directory: Path, *, key: bool, ca: bool, use: Use) -> Certificates:
    _check_directory(directory)
    mistakes: list[str] = []

    def attempt[Read](read: Callable[[Path], Read], name: str) -> Read | None:
        try:
            return read(directory / name)
        except TlsError as error:
            mistakes.append(str(error))
            return None

    chain = attempt(lambda path: _read_chain(path, use), CERTIFICATE) if key else None
    private = attempt(_read_key, KEY) if key else None
    bundle = attempt(_read_ca, CA) if ca else None
    if chain and private:
        attempt(lambda path: _check_pair(path, chain, private, bundle), KEY)
    if mistakes:
        raise TlsError("\n".join(mistakes))
    return Certificates(
        certificate=_pem(chain) if chain else None,
        key=_key_pem(private) if private else None,
        ca=_pem(bundle) if bundle else None,
        not_after=chain[0].not_valid_after_utc if chain else _NEVER,
        warnings=_chain_warnings(directory / CERTIFICATE, chain or ()),
    )


def _check_directory(directory: Path) -> None:
    try:
        what = None if stat.S_ISDIR(directory.stat().st_mode) else "is not a directory"
    except FileNotFoundError:
        what = "no such directory"
    except (OSError, ValueError) as error:
        what = _reason(error)
    if what:
        raise _error(directory, what, f"mount the Secret that has {CERTIFICATE}, {KEY} and {CA} there")


def _read_chain(path: Path, use: Use) -> Sequence[x509.Certificate]:
    chain = _parse_certificates(path, _read(path))
    problem = checks.date_problem(chain[0]) or checks.purpose_problem(chain[0], use)
    if problem:
        raise _error(path, *problem)
    if sum(len(_der(certificate)) for certificate in chain) > _LONGEST_CHAIN:
        advice = "leave only the server's or client's own and the intermediate ones"
        raise _error(path, f"has {len(chain)} certificates of more than 100 kB in all", advice)
    return chain


def _read_ca(path: Path) -> Sequence[x509.Certificate]:
    content = _read(path)
    if not content.strip():
        advice = "it needs the CA of the other side's certificates (ACME issuers, for one, give none)"
        raise _error(path, "is empty", advice)
    bundle = _parse_certificates(path, content)
    # While a CA is replaced, the old and the new one are both there, and one may be out of its time.
    problems = [checks.date_problem(certificate) for certificate in bundle]
    if all(problems) and problems[0]:
        raise _error(path, *problems[0])
    return bundle


def _check_pair(
    path: Path,
    chain: Sequence[x509.Certificate],
    key: PrivateKeyTypes,
    ca: Sequence[x509.Certificate] | None,
) -> None:
    """Check that `key` is that of the first certificate, and that gRPC takes both."""
    matching = [number for number, one in enumerate(chain, 1) if _public_key(one) == key.public_key()]
    if not matching:
        advice = "replace both with the files of one issuance"
        raise _error(path, f"is not the key of the certificate in {CERTIFICATE}", advice)
    if matching[0] != 1:
        what = f"is the key of certificate {matching[0]} in {CERTIFICATE}, not of the first"
        raise _error(path, what, "put the certificate of this key first, then those that signed it")
    if not proof.loads(_key_pem(key), _pem(chain), _pem(ca) if ca else None):
        what = f"gRPC can't load the certificate ({checks.subject(chain[0])}) with the key in {KEY}"
        advice = "issue both anew, as X.509 version 3 with a plain RSA key or a named curve"
        raise _error(path.with_name(CERTIFICATE), what, advice)


def _chain_warnings(path: Path, chain: Sequence[x509.Certificate]) -> Sequence[str]:
    """Return which certificates behind the first are out of their time: peers may not need them."""
    warnings = []
    for number, certificate in enumerate(chain[1:], 2):
        if problem := checks.date_problem(certificate):
            what = f"certificate {number} of the chain ({checks.subject(certificate)}) {problem[0]}"
            warnings.append(str(_error(path, what, "peers that need it will refuse the chain")))
    return warnings


def _read_key(path: Path) -> PrivateKeyTypes:
    from cryptography.hazmat.primitives.serialization import load_der_private_key  # noqa: PLC0415

    # Of several keys gRPC takes the first.
    block = next(iter(_blocks(path, _read(path), _KEY_LABELS)), None)
    if block is not None and block.encrypted:
        raise _error(path, "is encrypted", "store the key without a passphrase")
    try:
        key = load_der_private_key(block.der if block else b"", password=None)
    except Exception:  # noqa: BLE001 (whatever it is, its text may quote the key)
        raise _error(path, "is not a private key", "it must be PEM: -----BEGIN PRIVATE KEY-----") from None
    if problem := checks.key_problem(key):
        raise _error(path, *problem)
    return key


def _parse_certificates(path: Path, content: bytes) -> Sequence[x509.Certificate]:
    blocks = _blocks(path, content, _CERTIFICATE_LABELS)
    if not blocks:
        raise _error(path, "is not a certificate", "it must be PEM: -----BEGIN CERTIFICATE-----")
    return [_parse(path, number, block) for number, block in enumerate(blocks, 1)]


def _parse(path: Path, number: int, block: Block) -> x509.Certificate:
    from cryptography import x509  # noqa: PLC0415 (see the module's imports)

    try:
        certificate = x509.load_der_x509_certificate(_without_settings(block))
    except Exception:  # noqa: BLE001 (more types than its documentation names)
        what = f"certificate {number} can't be decoded"
        raise _error(path, what, "it must be X.509, as cert-manager and openssl make it") from None
    if problem := checks.form_problem(certificate):
        raise _error(path, f"certificate {number} {problem[0]}", problem[1])
    return certificate


def _without_settings(block: Block) -> bytes:
    """Return the DER of a certificate without the settings of OpenSSL that may follow it."""
    der = block.der
    if not block.label.startswith("TRUSTED"):
        return der
    # The certificate is one element: a tag, a length (itself, or how many bytes it takes), the content.
    size = der[1] & 0x7F if der[1] & 0x80 else 0
    length = int.from_bytes(der[2 : 2 + size]) if size else der[1]
    return der[: 2 + size + length]


def _blocks(path: Path, content: bytes, labels: Collection[str]) -> Sequence[Block]:
    try:
        return read_blocks(content, labels)
    except PemError as error:
        raise _error(path, str(error), "replace it with a whole PEM file") from None


def _read(path: Path) -> bytes:
    try:
        # NONBLOCK: a named pipe would wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _error(path, "is not a regular file", _FILE_ADVICE)
            content = file.read(_LARGEST_FILE + 1)
    except PermissionError:
        advice = f"user {os.geteuid()} must be able to read it: see fsGroup and defaultMode"
        raise _error(path, "permission denied", advice) from None
    except (OSError, ValueError) as error:
        raise _error(path, _reason(error), _FILE_ADVICE) from None
    if len(content) > _LARGEST_FILE:
        raise _error(path, "is larger than 4 MiB", _FILE_ADVICE)
    return content


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or "can't be read").lower()


def _der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 (see the module's imports)

    return certificate.public_bytes(Encoding.DER)


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 (see the module's imports)

    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _key_pem(key: PrivateKeyTypes) -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 (see the module's imports)

    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, pkcs8, serialization.NoEncryption())


def _public_key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except Exception:  # noqa: BLE001 (a kind that cryptography does not know, or a damaged one)
        return None


def _error(path: Path, what: str, advice: str) -> TlsError:
    shown = str(path) if str(path).isprintable() else repr(str(path))
    return TlsError(f"{shown}: {what}; {advice}")
