"""The metric that tells when the certificates that this process uses expire."""

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import grpc
import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from grpc_common.core.registries import per_registry

type Use = Literal["server", "client"]
"""The side of a connection on which a certificate is presented."""

type Credentials = grpc.ServerCredentials | grpc.ChannelCredentials


class _CertificateExpiry(Collector):
    """One series for each directory and use; of several that share them, the one that expires first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: WeakKeyDictionary[Credentials, tuple[str, Use, Callable[[], datetime]]]
        self._shown = WeakKeyDictionary()

    def show(
        self, credentials: Credentials, directory: Path, use: Use, not_after: Callable[[], datetime]
    ) -> None:
        with self._lock:
            self._shown[credentials] = (str(directory), use, not_after)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        with self._lock:
            shown = list(self._shown.values())
        ends: dict[tuple[str, Use], datetime] = {}
        for directory, use, not_after in shown:
            end = not_after()
            ends[directory, use] = min(end, ends.get((directory, use), end))
        family = GaugeMetricFamily(
            "grpc_tls_certificate_expiry_seconds",
            "Seconds until the certificate in use expires; negative once it has.",
            labels=["directory", "use"],
        )
        for labels, end in ends.items():
            family.add_metric(labels, (end - datetime.now(UTC)).total_seconds())
        yield family


@per_registry
def _expiry(registry: CollectorRegistry) -> _CertificateExpiry:
    expiry = _CertificateExpiry()
    registry.register(expiry)
    return expiry


def show_expiry(
    credentials: Credentials,
    directory: Path,
    use: Use,
    not_after: Callable[[], datetime],
    registry: CollectorRegistry = prometheus_client.REGISTRY,
) -> None:
    """Have `grpc_tls_certificate_expiry_seconds` tell `not_after` for as long as `credentials` are held."""
    _expiry(registry).show(credentials, directory, use, not_after)
