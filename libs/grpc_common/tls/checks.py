"""What makes a certificate or a key useless in gRPC although cryptography can parse it.

gRPC itself does not tell: it leaves certificates out, or no peer connects. Each rule was measured with
grpcio 1.85.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where it is used: 60 ms that nobody without TLS should pay
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from grpc_common.tls.expiry import Use

type Problem = tuple[str, str]
"""What is wrong, and what would be right."""

_CURVES = ("secp256r1", "secp384r1")

_RSA_BITS = 1024
"""The fewest that Go's clients take; with 512 gRPC can't sign a handshake."""

_UNDERSTOOD = {
    "2.5.29.15": "key usage",
    "2.5.29.17": "subject alternative name",
    "2.5.29.19": "basic constraints",
    "2.5.29.30": "name constraints",
    "2.5.29.32": "certificate policies",
    "2.5.29.33": "policy mappings",
    "2.5.29.36": "policy constraints",
    "2.5.29.37": "extended key usage",
    "2.5.29.54": "inhibit any-policy",
}
"""The extensions that BoringSSL lets be critical (X509_supported_extension)."""

_LONGEST_NAME = 200
"""Characters of a subject that a line shows."""


def date_problem(certificate: x509.Certificate) -> Problem | None:
    """Return whether `certificate` has expired, or is of the future."""
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return f"expired at {_utc(certificate.not_valid_after_utc)}", "renew the certificate"
    if now < certificate.not_valid_before_utc:
        what = f"is not valid before {_utc(certificate.not_valid_before_utc)}"
        return what, f"wait, or set the clock, by which it is {_utc(now)}"
    return None


def form_problem(certificate: x509.Certificate) -> Problem | None:
    """Return why gRPC can't parse `certificate`: it would leave it out, and all behind it."""
    from cryptography import x509  # noqa: PLC0415 (see the module's imports)

    try:
        _ = certificate.subject, certificate.issuer
    except ValueError:
        return "has a name that can't be decoded", "issue it anew, with names in UTF-8"
    if certificate.version is x509.Version.v1 and _has_extensions(certificate):
        return "has extensions, but says that it is of version 1", "issue it anew, as version 3"
    return None


def _has_extensions(certificate: x509.Certificate) -> bool:
    from cryptography import x509  # noqa: PLC0415 (see the module's imports)

    try:
        return len(certificate.extensions) > 0
    except (ValueError, x509.DuplicateExtension):
        return True


def purpose_problem(leaf: x509.Certificate, use: Use) -> Problem | None:
    """Return why no peer that checks `leaf` lets it stand for a server, or a client."""
    from cryptography import x509  # noqa: PLC0415 (see the module's imports)
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    try:
        extensions = leaf.extensions
    except (ValueError, x509.DuplicateExtension):
        return "has extensions that can't be decoded", "issue it anew"
    for extension in extensions:
        if extension.critical and extension.oid.dotted_string not in _UNDERSTOOD:
            what = f"has the critical extension {extension.oid.dotted_string}, which peers do not know"
            return what, "issue it without, or not as critical"
        if isinstance(extension.value, x509.KeyUsage) and not extension.value.digital_signature:
            return "has a key usage without digital signature, which TLS needs", "add it to the usages"
        if isinstance(extension.value, x509.ExtendedKeyUsage):
            needed = f"{use.upper()}_AUTH"
            if getattr(ExtendedKeyUsageOID, needed) not in extension.value:
                return f"is not for {use}s", f"add {use} auth to the extended key usages, or name none"
    return None


def key_problem(key: PrivateKeyTypes) -> Problem | None:
    """Return why no handshake succeeds with `key`."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415 (see the module's imports)

    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _RSA_BITS:
            return f"has only {key.key_size} bits", f"RSA needs {_RSA_BITS} at least, and should have 2048"
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return None
    return "is of a kind that gRPC can't use", "it must be RSA, ECDSA P-256 or ECDSA P-384"


def subject(certificate: x509.Certificate) -> str:
    """Return whose `certificate` is, for people: CN=Example CA."""
    text = certificate.subject.rfc4514_string()[:_LONGEST_NAME] or "an empty name"
    return text if text.isprintable() else repr(text)


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
