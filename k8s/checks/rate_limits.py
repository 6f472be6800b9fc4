"""No caller from outside takes all that there is: each edge limits how often one may call."""

import re
from collections.abc import Iterator

from k8s.checks.entrances import Entrance, ways_to_methods
from k8s.checks.gateways import policies
from k8s.checks.manifests import Manifests, Problem, annotations, find, get, metadata
from k8s.checks.traefik import middlewares

LIMITED_BY = "grpc-on-kubernetes/rate-limit"
"""The annotation of a VirtualService with the EnvoyFilter that limits its gateway: NAMESPACE/NAME."""

_NGINX = ("nginx.ingress.kubernetes.io/limit-rps", "nginx.ingress.kubernetes.io/limit-rpm")


def limit_calls_from_outside(manifests: Manifests) -> Iterator[Problem]:
    """Each route that takes a method has a rate limit."""
    for way in ways_to_methods(manifests):
        if way.manifest["kind"] in _LIMITED:
            is_limited, fix = _LIMITED[way.manifest["kind"]]
            if not is_limited(manifests, way):
                yield Problem(way.manifest, way.field, "nothing limits how often one may call", fix)


def _by_traefik(manifests: Manifests, way: Entrance) -> bool:
    rules = (found for field, found in find(way.manifest, "spec.routes[]") if field == way.field)
    references = [each for rule in rules for each in rule.get("middlewares") or []]
    found = middlewares(manifests, references, metadata(way.manifest, "namespace"))
    return any(
        # 0 is no limit; of a header, callers choose whose calls are counted.
        get(spec or {}, "rateLimit.average")
        and not get(spec or {}, "rateLimit.sourceCriterion.requestHeaderName")
        for spec in found
    )


def _by_nginx(_: Manifests, way: Entrance) -> bool:
    values = [annotations(way.manifest).get(name, "") for name in _NGINX]
    return any(value.isdecimal() and int(value) > 0 for value in values)


def _by_envoy(manifests: Manifests, way: Entrance) -> bool:
    rules = [rule for field, rule in find(way.manifest, "spec.rules[]") if field == way.field]
    return all(
        any(policy["spec"].get("rateLimit") for policy in policies(manifests, way.manifest, rule))
        for rule in rules
    )


def _by_istio(manifests: Manifests, way: Entrance) -> bool:
    """Return whether an EnvoyFilter that limits is here, or named: references.py looks for that one."""
    filters = manifests.of_kind("EnvoyFilter")
    types = [kind for each in filters for _, kind in find(each, f"{_PATCH}.typed_config.@type")]
    return LIMITED_BY in annotations(way.manifest) or any(map(_LIMITS.search, types))


_PATCH = "spec.configPatches[].patch.value"
_LIMITS = re.compile(r"\.(local_)?ratelimit\.v3\.")

_OF_GATEWAY = (
    _by_envoy,
    "add rateLimit to the BackendTrafficPolicy of the Gateway, and merge others with it",
)

_LIMITED = {
    "GRPCRoute": _OF_GATEWAY,
    "HTTPRoute": _OF_GATEWAY,
    "Ingress": (_by_nginx, f"add the annotation {_NGINX[0]}"),
    "IngressRoute": (_by_traefik, "add a Middleware with rateLimit to its middlewares"),
    "VirtualService": (_by_istio, f"name the EnvoyFilter of the gateway in the annotation {LIMITED_BY}"),
}
