"""Who calls, by the subject alternative names (SANs) of a certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from grpc_common.config.callers import San, SanKind
from grpc_common.core.caller import Caller
from grpc_common.core.errors import printable

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

_NAMES_SHOWN = 5
_NAME_LENGTH = 100
"""Characters of a name that are shown: more than a SPIFFE ID of Kubernetes needs."""

_KINDS = {
    "DNSName": SanKind.DNS,
    "UniformResourceIdentifier": SanKind.URI,
    "IPAddress": SanKind.IP,
    "RFC822Name": SanKind.EMAIL,
}
"""By cryptography's names for them; a name of another kind is shown by its kind alone."""

_CERTIFICATES = 256
"""Certificates whose names are kept, since a connection makes many calls: 30 µs (200 with 100 names) to read
one, 1 µs to look it up. A certificate has some KB; TLS takes none above 100 KB."""


_UNREADABLE = Caller("a caller whose certificate can't be read")
_WITHOUT_SANS = Caller("a caller without SANs")


def identity(auth_context: Mapping[str, Iterable[bytes]]) -> Caller | None:
    """Return who has made a call, None without a certificate.

    Its text is printable, and bounded, whatever the certificate holds. SANs of other kinds than SanKind's
    (directory names, ...) are none of its names.

    The certificate itself is read, since the names that gRPC reports are cut at a NUL, and don't say of
    which kind they are. That TLS has verified the certificate is presumed.

    Args:
        auth_context: what the servicer context's auth_context() returns.

    """
    pem = next(iter(auth_context.get("x509_pem_cert", ())), b"")
    return _of_certificate(pem) if pem else None


@lru_cache(_CERTIFICATES)
def _of_certificate(pem: bytes) -> Caller:
    # Only a server with TLS pays for the import.
    from cryptography import x509  # noqa: PLC0415

    try:
        extensions = x509.load_pem_x509_certificate(pem).extensions
        sans = [*extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
    except x509.ExtensionNotFound:
        return _WITHOUT_SANS
    except Exception:  # noqa: BLE001 (whatever is wrong with it, it proves nothing)
        return _UNREADABLE
    return Caller(_shown(sans), frozenset(filter(None, map(_comparable, sans)))) if sans else _WITHOUT_SANS


def _comparable(san: GeneralName) -> str | None:
    kind, value = _KINDS.get(type(san).__name__), str(san.value)
    # Other characters may become equal to a name in lower case, as the sign of kelvin does.
    if kind is None or not (value.isascii() and value.isprintable()):
        return None
    return str(San.of(kind, value))


def _shown(sans: list[GeneralName]) -> str:
    shown = [_short(san) for san in sans[:_NAMES_SHOWN]]
    more = len(sans) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _short(san: GeneralName) -> str:
    name = type(san).__name__
    return shown_name(f"{_KINDS[name]}:{san.value}" if name in _KINDS else name)


def shown_name(text: str) -> str:
    """Return a caller's name as logs and errors have it: printable, and not too long."""
    return printable(text if len(text) <= _NAME_LENGTH else text[:_NAME_LENGTH] + "...")
