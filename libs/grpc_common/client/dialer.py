"""Opens grpc's channels to what a target means at the moment, and notices when that changes."""

import asyncio
import functools
from collections.abc import Coroutine, Sequence
from typing import Any

import grpc
import structlog

from grpc_common.client.resolver.endpoint import EndpointSource, check_kubernetes
from grpc_common.client.resolver.target import GrpcTarget, KubernetesTarget, Target, endpoints_target, parse_target
from grpc_common.client.call.whole_stream import BLOCKING_OPTIONS
from grpc_common.core.background import supervise
from grpc_common.tls.credentials import ClientTLS, TlsError

log = structlog.get_logger()

# Seconds between two looks at the certificate files; the kubelet takes up to a minute to bring new ones.
_CERTIFICATE_INTERVAL = 1.0

# Seconds until a source of endpoints that has failed is asked again.
_SOURCE_INTERVAL = 5.0


class Dialer:
    """Knows a service's endpoints and the client's certificate as they are now.

    Args:
        target: what to dial.
        tls: certificates; plaintext without.
        options: of every channel.
        source: the endpoints, in place of what the target says.

    Raises:
        ValueError: the target has none of the known forms.
        TlsError: the certificate files can't be used.

    """

    def __init__(
        self,
        target: str,
        tls: ClientTLS | None,
        options: Sequence[tuple[str, Any]],
        source: EndpointSource | None,
    ) -> None:
        self.changed = asyncio.Event()
        self.source_failed = asyncio.Event()
        self.source_error: Exception | None = None
        self._name = target
        self._target = parse_target(target)
        self._tls = tls
        self._options = [*options, *_authority(self._target, tls)]
        self._source = source or _source(self._target)
        self._addresses: Sequence[str] = ()
        self._credentials: grpc.ChannelCredentials | None = None
        if tls is not None:
            self._fingerprint = tls.fingerprint()
            self._credentials = tls.credentials()
        if self._source is None:
            self.changed.set()

    def open(self) -> grpc.aio.Channel | None:
        """Return a new channel; None if there is no endpoint."""
        uri = self._uri()
        if uri is None:
            return None
        if self._credentials is None:
            return grpc.aio.insecure_channel(uri, options=self._options)
        return grpc.aio.secure_channel(uri, self._credentials, options=self._options)

    def open_blocking(self) -> grpc.Channel | None:
        """Return a new channel on which threads read streams; None if there is no endpoint."""
        uri, options = self._uri(), [*self._options, *BLOCKING_OPTIONS]
        if uri is None:
            return None
        if self._credentials is None:
            return grpc.insecure_channel(uri, options=options)
        return grpc.secure_channel(uri, self._credentials, options=options)

    def _uri(self) -> str | None:
        if isinstance(self._target, GrpcTarget) and self._source is None:
            return self._target.uri
        return endpoints_target(self._addresses) if self._addresses else None

    def followers(self) -> list[Coroutine[Any, Any, None]]:
        """Return what sets `changed` each time that `open` would open something else; never ends."""
        followers = []
        if self._source is not None:
            followers.append(self._follow_endpoints(self._source))
        if self._tls is not None:
            follow = functools.partial(self._follow_certificate, self._tls)
            followers.append(supervise(f"certificate of the channel to {self._name}", follow))
        return followers

    def close(self) -> None:
        """Let go of the certificate, which the metric of its expiry shows until then."""
        self._credentials = None

    async def _follow_endpoints(self, source: EndpointSource) -> None:
        while True:
            try:
                async for addresses in source.watch():
                    self.source_error = None
                    self._addresses = tuple(addresses)
                    self.changed.set()
                raise RuntimeError("the source has ended")  # noqa: TRY301 (as bad as an error)
            except Exception as error:  # noqa: BLE001 (whatever it is, the channel serves on)
                self.source_error = error
                self.source_failed.set()
                log.warning(
                    "endpoints not followed, the last ones stay in use", target=self._name, reason=repr(error)
                )
            await asyncio.sleep(_SOURCE_INTERVAL)

    async def _follow_certificate(self, tls: ClientTLS) -> None:
        refused: object = None
        while True:
            await asyncio.sleep(_CERTIFICATE_INTERVAL)
            if (fingerprint := tls.fingerprint()) == self._fingerprint:
                continue
            try:
                self._credentials = await asyncio.to_thread(tls.credentials)
            except TlsError as error:
                # It is tried again all the same: a certificate that is not valid yet will be.
                if fingerprint != refused:
                    refused, reasons = fingerprint, str(error).splitlines()
                    log.warning(
                        "new certificate refused, the old one stays in use",
                        target=self._name,
                        reasons=reasons,
                    )
            else:
                self._fingerprint = fingerprint
                self.changed.set()


def _source(target: Target) -> EndpointSource | None:
    if isinstance(target, GrpcTarget):
        return None
    check_kubernetes()
    # The client of Kubernetes' API takes longer to import than all the rest.
    from grpc_common.client.resolver.kubernetes import KubernetesEndpoints  # noqa: PLC0415

    return KubernetesEndpoints(target.service, target.namespace, target.port)


def _authority(target: Target, tls: ClientTLS | None) -> list[tuple[str, str]]:
    """Return the option for the name in the server's certificate: IP addresses stand in none.

    Servers see it as :authority too, which for a list of addresses would not be a valid one.
    """
    if tls is not None and tls.server_name is not None:
        return [("grpc.default_authority", tls.server_name)]
    if isinstance(target, KubernetesTarget):
        return [("grpc.default_authority", target.name)]
    return []
