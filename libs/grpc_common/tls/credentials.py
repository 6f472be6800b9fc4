"""TLS from a directory as cert-manager's Secret is mounted: tls.crt, tls.key and ca.crt.

The files may be replaced at any time, all at once (the kubelet swaps the symlink `..data`) or
one after the other. A server takes new files with the next handshake; as long as they are not
a usable set, it keeps the ones that it has.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import prometheus_client
import structlog
from prometheus_client import CollectorRegistry

from grpc_common.tls.expiry import Use, show_expiry
from grpc_common.tls.files import CERTIFICATE, KEY, Certificates, TlsError, fingerprint, load

__all__ = ["ClientTLS", "TlsError", "server_credentials"]

log = structlog.get_logger()

_SETTLING = 0.1
"""Seconds that handshakes wait, once for each new certificate. gRPC frees the old one while handshakes that
have just asked for it may not have taken it yet, which crashed the process (grpcio 1.85, after hundreds of
rotations under new connections). It holds a lock here that later handshakes wait for; those that have passed
it need microseconds."""

_RETRY = 1.0
"""Seconds until files that were refused are tried again: time alone can make them good, but trying takes
about a millisecond, with a lock that handshakes wait for."""


def server_credentials(
    directory: Path,
    *,
    require_client_certificate: bool,
    registry: CollectorRegistry = prometheus_client.REGISTRY,
) -> grpc.ServerCredentials:
    """Return credentials for one port that follow the files in `directory`; TLS 1.2 at least.

    Each port needs credentials of its own, since gRPC is told of new files once for each.

    The metric of the expiry, in `registry`, has them for as long as the returned object is held.

    Args:
        directory: where tls.crt, tls.key and, for client certificates, ca.crt are.
        require_client_certificate: let in only callers with a certificate that ca.crt has signed.
        registry: has the metric.

    Raises:
        TlsError: the files can't be used as they are now.

    """
    files = _ServerFiles(directory, ca=require_client_certificate)
    in_use = files.newest()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal in_use
        if (newest := files.newest()) is in_use:
            return None
        in_use = newest
        time.sleep(_SETTLING)
        return _configuration(newest)

    credentials = grpc.dynamic_ssl_server_credentials(
        _configuration(in_use),
        fetch,  # type: ignore[arg-type]  # None is documented for "unchanged"
        require_client_authentication=require_client_certificate,
    )
    show_expiry(credentials, directory, "server", lambda: files.newest().not_after, registry)
    return credentials


@dataclass(frozen=True, slots=True)
class ClientTLS:
    """How a client checks the server's certificate, and which one it presents.

    A channel keeps the credentials that it was made with; new files need a new channel. Take
    `fingerprint()` before `credentials()`: once it differs, the files have changed since.
    """

    directory: Path | None = None
    """Where ca.crt is, which must have signed the server's certificate. If tls.crt and tls.key
    are there too, the client presents them. None: the public roots that come with grpcio, or
    those in the file GRPC_DEFAULT_SSL_ROOTS_FILE_PATH, and no certificate of the client."""

    server_name: str | None = None
    """The name that the server's certificate must have where it is not the target's host; the
    channel's `grpc.default_authority`. None: the target's host."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return credentials from the files as they are now.

        Raises:
            TlsError: the files can't be used.

        """
        if self.directory is None:
            return grpc.ssl_channel_credentials()
        presents = any((self.directory / name).exists() for name in (CERTIFICATE, KEY))
        files = load(self.directory, key=presents, ca=True, use="client")
        credentials = grpc.ssl_channel_credentials(files.ca, files.key, files.certificate)
        if presents:
            _warn(files, self.directory, "client")
            show_expiry(credentials, self.directory, "client", lambda: files.not_after)
        return credentials

    def fingerprint(self) -> object:
        """Return a value that differs once the files have changed; takes microseconds."""
        return self.directory and fingerprint(self.directory)


class _ServerFiles:
    """The newest usable files in a directory, for gRPC's threads and that of the metrics."""

    def __init__(self, directory: Path, *, ca: bool) -> None:
        self._directory = directory
        self._ca = ca
        self._lock = threading.Lock()
        self._fingerprint = fingerprint(directory)
        self._newest = self._load()
        self._refused: object = None
        self._retry_at = 0.0

    def newest(self) -> Certificates:
        """Return the same object until there are new usable files; never raises."""
        with self._lock:
            now = fingerprint(self._directory)
            if now != self._fingerprint and (now != self._refused or time.monotonic() >= self._retry_at):
                self._take(now)
            return self._newest

    def _take(self, now: object) -> None:
        try:
            self._newest = self._load()
        except Exception as error:  # noqa: BLE001 (whatever it is, the old certificate serves on)
            # Files that are replaced while they are read need not match: the next handshake reads on.
            if fingerprint(self._directory) == now:
                self._refuse(now, error)
        else:
            self._fingerprint, self._refused = now, None
            not_after = self._newest.not_after.isoformat()
            log.info("new certificate", directory=str(self._directory), use="server", not_after=not_after)

    def _load(self) -> Certificates:
        files = load(self._directory, key=True, ca=self._ca, use="server")
        _warn(files, self._directory, "server")
        return files

    def _refuse(self, refused: object, error: Exception) -> None:
        self._retry_at = time.monotonic() + _RETRY
        if refused != self._refused:
            self._refused = refused
            expected = isinstance(error, TlsError)
            reasons = str(error).splitlines() if expected else [repr(error)]
            log.error(
                "new certificate refused, the old one stays in use",
                directory=str(self._directory),
                use="server",
                reasons=reasons,
                exc_info=None if expected else error,
            )


def _warn(files: Certificates, directory: Path, use: Use) -> None:
    if files.warnings:
        log.warning(
            "certificate chain is out of its time",
            directory=str(directory),
            use=use,
            reasons=list(files.warnings),
        )


def _configuration(files: Certificates) -> grpc.ServerCertificateConfiguration:
    assert files.key is not None
    assert files.certificate is not None
    return grpc.ssl_server_certificate_configuration([(files.key, files.certificate)], files.ca)
