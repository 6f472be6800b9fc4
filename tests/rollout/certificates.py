"""The certificates of pods and clients, which are rolled while both use them."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import trustme

from grpc_common.testing.certificates import CertificateDirectory
from tools.lab.fleet.fleet import NAMESPACE, SERVICE

NAME = f"{SERVICE}.{NAMESPACE}"
"""What the servers' certificates are for."""


class Certificates:
    """Two directories as Secrets are mounted, of one authority that may change."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.servers = CertificateDirectory(folder / "server", authority, NAME)
        self.clients = CertificateDirectory(folder / "client", authority, "client.default")

    def of_client(self) -> grpc.ChannelCredentials:
        """Return what a channel of grpcio keeps for its life."""
        files = [self.clients.path / name for name in ("ca.crt", "tls.key", "tls.crt")]
        return grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))

    def steps(self) -> Iterator[str]:
        """Replace certificates and their authority as cert-manager and trust-manager do; yield what is done.

        Everybody must have taken a step before the next one.
        """
        both_sides = (self.servers, self.clients)
        old, new = self.servers.ca, trustme.CA()
        both = {"ca.crt": old.cert_pem.bytes() + new.cert_pem.bytes()}
        for directory in both_sides:
            directory.replace(directory.issue() | both)
        yield "new certificates, and another authority is trusted too"
        for directory in both_sides:
            directory.ca = new
            directory.replace(directory.issue() | both)
        yield "certificates are of the other authority"
        for directory in both_sides:
            directory.rotate()
        yield "the first authority is trusted no more"
