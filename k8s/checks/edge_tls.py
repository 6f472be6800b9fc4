"""A token is as good as a password: edges take calls over TLS alone."""

from collections.abc import Iterator

from k8s.checks.entrances import Entrance, ways_to_methods
from k8s.checks.gateways import istio_servers, listeners
from k8s.checks.manifests import Manifests, Problem, find, get

_ENCRYPTED = ("HTTPS", "TLS")


def take_calls_over_tls(manifests: Manifests) -> Iterator[Problem]:
    """Each route of Traefik, nginx, Gateway API and Istio that takes a method has TLS before it."""
    fix = "give it a certificate: callers send tokens, and users' names"
    for way in ways_to_methods(manifests):
        if plaintext := _PLAINTEXT.get(way.manifest["kind"]):
            for what in plaintext(manifests, way):
                yield Problem(way.manifest, way.field, f"{what} takes calls in plaintext", fix)


def _of_traefik(_: Manifests, way: Entrance) -> Iterator[str]:
    if get(way.manifest, "spec.tls") is None:
        yield "the route without spec.tls"


def _of_nginx(_: Manifests, way: Entrance) -> Iterator[str]:
    with_tls = {host for _, host in find(way.manifest, "spec.tls[].hosts[]")}
    for host in [rule.get("host") for _, rule in find(way.manifest, "spec.rules[]")] or [None]:
        if host not in with_tls:
            yield f"the host {host or 'of any name'}, which is not in spec.tls,"


def _of_gateway(manifests: Manifests, way: Entrance) -> Iterator[str]:
    for _, parent in find(way.manifest, "spec.parentRefs[]"):
        for listener in listeners(manifests, way.manifest, parent):
            if listener.get("protocol") not in _ENCRYPTED:
                yield f"the listener {listener.get('name')} of the Gateway"


def _of_istio(manifests: Manifests, way: Entrance) -> Iterator[str]:
    for server in istio_servers(manifests, way.manifest):
        if get(server, "tls.mode") is None and not get(server, "tls.httpsRedirect"):
            yield f"port {get(server, 'port.number')} of the Gateway"


_PLAINTEXT = {
    "GRPCRoute": _of_gateway,
    "HTTPRoute": _of_gateway,
    "Ingress": _of_nginx,
    "IngressRoute": _of_traefik,
    "VirtualService": _of_istio,
}
