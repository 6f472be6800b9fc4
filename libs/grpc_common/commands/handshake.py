"""What a server shows in a TLS handshake, trusted or not."""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from grpc_common.tls.credentials import ClientTLS
from grpc_common.tls.files import CERTIFICATE, KEY

# Seconds for connection and handshake.
_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Handshake:
    """The protocol and certificate that a server chose."""

    version: str
    """The protocol: TLSv1.3."""

    http2: bool
    """Whether the server takes HTTP/2 by ALPN, without which there is no gRPC."""

    names: Sequence[str]
    """The certificate's subject alternative names."""

    not_before: datetime
    not_after: datetime

    @property
    def life_left(self) -> float:
        """The part of the certificate's life that is left: 1 at its start, 0 or less once expired."""
        return (self.not_after - datetime.now(UTC)) / (self.not_after - self.not_before)


async def shake_hands(address: str, name: str, tls: ClientTLS | None) -> Handshake | None:
    """Return what the server at an address shows; None if it can't be reached or does not speak TLS.

    Args:
        address: as gRPC writes it: ipv4:10.0.0.7:50051.
        name: the server name to ask for; "" for none.
        tls: has the certificate to present.

    """
    scheme, _, host_and_port = address.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return None
    host, _, port = host_and_port.rpartition(":")
    host = host.strip("[]")
    try:
        async with asyncio.timeout(_TIMEOUT):
            context = _curious_context(tls)
            _, writer = await asyncio.open_connection(
                host, int(port), ssl=context, server_hostname=name or host
            )
    except OSError:
        return None
    shown = _read(writer.get_extra_info("ssl_object"))
    writer.transport.abort()
    return shown


def _curious_context(tls: ClientTLS | None) -> ssl.SSLContext:
    """Return a context that only looks; gRPC itself tells whether it trusts the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if tls is not None and tls.directory is not None and (tls.directory / KEY).exists():
        context.load_cert_chain(tls.directory / CERTIFICATE, tls.directory / KEY)
    return context


def _read(connection: ssl.SSLObject) -> Handshake:
    from cryptography import x509  # noqa: PLC0415 (60 ms that nobody without TLS should pay)

    certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    return Handshake(
        version=connection.version() or "",
        http2=connection.selected_alpn_protocol() == "h2",
        names=[str(name.value) for name in names],
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )
