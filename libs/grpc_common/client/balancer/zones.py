"""Calls stay in the client's zone, where traffic costs least and takes the shortest way."""

from collections.abc import Collection, Sequence
from random import random

from grpc_common.client.balancer.picker import Candidate, Picker, PickerFactory
from grpc_common.client.resolver.endpoint import Endpoint

# How much more than its share a server is expected to bear: Envoy's overprovisioning_factor.
_OVERPROVISIONING = 1.4


def prefer_zone[C: Candidate](
    zone: str, known: Sequence[Endpoint], inner: PickerFactory[C]
) -> PickerFactory[C]:
    """Return a factory of pickers that pick by `inner` in `zone`, and elsewhere when too few are READY there.

    As kube-proxy does, it goes by the hints of the EndpointSlices if all known endpoints have hints and
    some are meant for this zone; else by the endpoints' own zones. Of as many servers as the zone should
    have, at least 1 / 1.4 must be READY for all calls to stay. With fewer the greater part of the calls
    leaves, so that a few servers don't bear a whole zone. A zone should have all endpoints that are meant
    for it, and without hints no less than its part of all.

    `known` are all endpoints that a candidate may come from, READY or not. With an empty `zone`, or
    nothing known of it, the picker is the inner one.
    """
    if not zone:
        return inner
    meant, expected = _meant_for(zone, known)

    def factory(candidates: Sequence[C]) -> Picker[C]:
        local = [candidate for candidate in candidates if candidate.endpoint.address in meant]
        others = [candidate for candidate in candidates if candidate.endpoint.address not in meant]
        if not local or not others:
            return inner(candidates)
        return _PreferLocal(inner(local), inner(others), _OVERPROVISIONING * len(local) / expected)

    return factory


def _meant_for(zone: str, known: Sequence[Endpoint]) -> tuple[frozenset[str], float]:
    """Return the addresses for the clients of a zone, and how many these should be."""
    if all(endpoint.for_zones for endpoint in known):
        hinted = frozenset(endpoint.address for endpoint in known if zone in endpoint.for_zones)
        if hinted:
            return hinted, len(hinted)
    local = frozenset(endpoint.address for endpoint in known if endpoint.zone == zone)
    zones = {endpoint.zone for endpoint in known if endpoint.zone}
    return local, max(len(local), len(known) / max(len(zones), 1))


class _PreferLocal[C: Candidate]:
    def __init__(self, local: Picker[C], others: Picker[C], part: float) -> None:
        self._local = local
        self._others = others
        self._part = part
        """Of the calls that stay; all from 1 on."""

    def pick(self, tried: Collection[C] = ()) -> C:
        """Return one of the zone's; a retry rather leaves the zone than comes to the same server again."""
        stays = self._part >= 1 or random() < self._part  # noqa: S311 (no secret)
        first, second = (self._local, self._others) if stays else (self._others, self._local)
        chosen = first.pick(tried)
        return second.pick(tried) if chosen in tried else chosen
