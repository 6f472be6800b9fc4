"""No caller from outside takes all that there is: each edge limits how often one may call."""

from collections.abc import Iterator

from k8s.checks.entrances import Entrance, entrances
from k8s.checks.gateways import takers
from k8s.checks.manifests import Manifest, Manifests, Problem, annotations, find, metadata
from k8s.checks.methods import METHODS
from k8s.checks.servers import servers

_NGINX = ("nginx.ingress.kubernetes.io/limit-rps", "nginx.ingress.kubernetes.io/limit-rpm")


def limit_calls_from_outside(manifests: Manifests) -> Iterator[Problem]:
    """Each route of Traefik, nginx and Gateway API that takes a method has a rate limit."""
    for server in servers(manifests):
        for way in entrances(manifests, server):
            if way.manifest["kind"] in _LIMITED and any(map(way.takes, METHODS)):
                is_limited, fix = _LIMITED[way.manifest["kind"]]
                if not is_limited(manifests, way):
                    yield Problem(way.manifest, way.field, "nothing limits how often one may call", fix)


def _by_traefik(manifests: Manifests, way: Entrance) -> bool:
    names = (found for field, found in find(way.manifest, "spec.routes[]") if field == way.field)
    references = [each for rule in names for each in rule.get("middlewares") or []]
    return any("rateLimit" in _spec(_middleware(manifests, way, each)) for each in references)


def _middleware(manifests: Manifests, way: Entrance, reference: Manifest) -> Manifest | None:
    namespace = reference.get("namespace") or metadata(way.manifest, "namespace")
    return manifests.named("Middleware", reference["name"], namespace)


def _spec(manifest: Manifest | None) -> Manifest:
    return (manifest or {}).get("spec") or {}


def _by_nginx(_: Manifests, way: Entrance) -> bool:
    given = annotations(way.manifest)
    return any(given.get(name, "0") != "0" for name in _NGINX)


def _by_envoy(manifests: Manifests, way: Entrance) -> bool:
    found = [
        taker
        for path in METHODS
        for taker in takers(manifests, path)
        if taker.route is way.manifest and taker.field == way.field
    ]
    return all(any("rateLimit" in policy["spec"] for policy in taker.policies) for taker in found)


_LIMITED = {
    "GRPCRoute": (
        _by_envoy,
        "add rateLimit to the BackendTrafficPolicy of the Gateway, and merge others with it",
    ),
    "Ingress": (_by_nginx, f"add the annotation {_NGINX[0]}"),
    "IngressRoute": (_by_traefik, "add a Middleware with rateLimit to its middlewares"),
}
