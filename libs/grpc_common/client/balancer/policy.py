"""Makes pickers of a service's configuration."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from grpc_common.client.balancer.least_request import LeastRequest
from grpc_common.client.balancer.picker import Picker, PickerFactory
from grpc_common.client.balancer.round_robin import RoundRobin
from grpc_common.client.balancer.slow_start import slow_start
from grpc_common.client.balancer.subchannel import Subchannel
from grpc_common.client.balancer.subsetting import subset
from grpc_common.client.balancer.zones import prefer_zone
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.service_config import ServiceConfig

type Policy = Callable[[Sequence[Subchannel], Sequence[Endpoint]], Picker[Subchannel]]
"""Makes the picker for the subchannels that are READY, of all these endpoints."""

type Choice = Callable[[Sequence[Endpoint]], Sequence[Endpoint]]
"""Returns those of the endpoints that a client connects to."""


def policy_of(service: ServiceConfig) -> Policy:
    """Return what makes the pickers of a channel."""
    inner: PickerFactory[Subchannel] = (
        LeastRequest if service.load_balancing == "least_request" else RoundRobin
    )
    if service.slow_start:
        inner = slow_start(service.slow_start, inner)

    def policy(ready: Sequence[Subchannel], known: Sequence[Endpoint]) -> Picker[Subchannel]:
        return prefer_zone(service.zone, known, inner)(ready)

    return policy


def choice_of(service: ServiceConfig) -> Choice:
    """Return what chooses the endpoints that a channel connects to."""
    if service.load_balancing == "pick_first":
        return _together
    if (chosen := service.subset) is None:
        return lambda endpoints: endpoints
    client = chosen.client or socket.gethostname()
    return lambda endpoints: subset(endpoints, chosen.size, client)


def _together(endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Make one endpoint of all, in which C-core picks the first that it can connect to.

    It takes addresses of one family alone; IPv4 wins, since a dual-stack service has the same pods in both.
    """
    addresses = [endpoint.address for endpoint in endpoints]
    one_family = [address for address in addresses if not address.startswith("[")] or addresses
    return [Endpoint(",".join(one_family))] if one_family else []
