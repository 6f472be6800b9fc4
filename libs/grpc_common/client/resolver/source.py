"""Which source finds the endpoints of a target."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from grpc_common.client.resolver.dns import DnsEndpoints
from grpc_common.client.resolver.endpoint import Endpoint, EndpointSource, check_kubernetes
from grpc_common.client.resolver.proxy import proxied
from grpc_common.client.resolver.target import DnsTarget, KubernetesTarget, StaticTarget, Target


class StaticEndpoints:
    """Endpoints that never change.

    Args:
        addresses: as in Endpoint.address.

    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def watch(self) -> AsyncIterator[Sequence[Endpoint]]:
        """Yield the endpoints; never ends."""
        yield [Endpoint(address) for address in self._addresses]
        await asyncio.Event().wait()


def args_for(source: EndpointSource) -> dict[str, int]:
    """Return the arguments of channels to what a source has found here.

    No proxy is for them: gRPC would look for an address among the names in no_proxy.
    """
    return {} if isinstance(source, StaticEndpoints) else {"grpc.enable_http_proxy": 0}


def source_of(target: Target, args: Mapping[str, object]) -> EndpointSource:
    """Return what finds the endpoints of `target`.

    Args:
        target: what to dial.
        args: the channel's arguments; they may have a proxy, which then resolves names.

    Raises:
        StartError: the target is kubernetes:///, and the packages for it are missing.

    """
    match target:
        case StaticTarget():
            return StaticEndpoints(target.addresses)
        case DnsTarget():
            if proxied(target.name, target.port, args):
                return StaticEndpoints([target.uri])
            return DnsEndpoints(target.name, target.port, resolver=target.resolver)
        case KubernetesTarget():
            check_kubernetes()
            # The client of Kubernetes' API takes longer to import than all the rest.
            from grpc_common.client.resolver.kubernetes import KubernetesEndpoints  # noqa: PLC0415

            return KubernetesEndpoints(target.service, target.namespace, target.port)
