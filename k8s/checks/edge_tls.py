"""A token is as good as a password: edges take calls over TLS alone."""

from collections.abc import Iterator

from k8s.checks.entrances import Entrance, entrances
from k8s.checks.manifests import Manifests, Problem, find, get, metadata
from k8s.checks.methods import METHODS
from k8s.checks.servers import servers

_ENCRYPTED = ("HTTPS", "TLS")


def take_calls_over_tls(manifests: Manifests) -> Iterator[Problem]:
    """Each route of Traefik, nginx and Gateway API that takes a method has TLS before it."""
    for server in servers(manifests):
        for way in entrances(manifests, server):
            plaintext = _PLAINTEXT.get(way.manifest["kind"])
            if plaintext and any(map(way.takes, METHODS)):
                for what in plaintext(manifests, way):
                    fix = "give it a certificate: callers send tokens, and users' names"
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
        where = parent.get("namespace") or metadata(way.manifest, "namespace")
        gateway = manifests.named("Gateway", parent.get("name", ""), where)
        for _, listener in find(gateway or {}, "spec.listeners[]"):
            is_meant = parent.get("sectionName") in (None, listener.get("name"))
            if is_meant and listener.get("protocol") not in _ENCRYPTED:
                yield f"the listener {listener.get('name')} of the Gateway"


_PLAINTEXT = {
    "GRPCRoute": _of_gateway,
    "HTTPRoute": _of_gateway,
    "Ingress": _of_nginx,
    "IngressRoute": _of_traefik,
}
