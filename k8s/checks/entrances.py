"""The ways by which calls from outside the cluster come to a server."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from k8s.checks.gateways import takers
from k8s.checks.manifests import Manifest, Manifests, annotations, find, get, metadata
from k8s.checks.mesh import is_inside, istio_routes
from k8s.checks.methods import METHODS
from k8s.checks.servers import Server, servers
from k8s.checks.traefik import middlewares, traefik_answers

type Takes = Callable[[str], bool]

_REWRITES = ("addPrefix", "plugin", "replacePath", "replacePathRegex", "stripPrefix", "stripPrefixRegex")
"""Traefik's middlewares behind which a path is another one, or may be."""

_NGINX = "nginx.ingress.kubernetes.io/"
_NGINX_REWRITES = {
    f"{_NGINX}{name}" for name in ("configuration-snippet", "rewrite-target", "server-snippet")
}

_OF_CONNECTIONS = {
    "IngressRouteTCP": "spec.routes[].services[]",
    "TCPRoute": "spec.rules[].backendRefs[]",
    "TLSRoute": "spec.rules[].backendRefs[]",
}
"""What passes connections on as they are, to the Services that are named there."""


@dataclass(frozen=True)
class Entrance:
    """A place that leads calls from outside to a server."""

    manifest: Manifest
    field: str
    takes: Takes
    """Whether a call to a path comes in by it."""
    is_proxy: bool = True
    """Whether the server sees a proxy in place of the caller."""
    transport: str | None = None
    """The ServersTransport of Traefik's that leads on."""


def entrances(manifests: Manifests, server: Server) -> Iterator[Entrance]:
    """Yield each entrance to a server."""
    services = {metadata(each, "name"): each for each in manifests.services_of(server.pod)}
    namespace = metadata(server.pod.workload, "namespace")
    ports = server.ports
    for service in services.values():
        if _is_published(service) and any(server.ports_of(service)):
            yield Entrance(service, "spec.type", _everything, is_proxy=False)
    yield from _of_host(server, ports)
    for manifest in manifests.objects:
        leads = partial(_leads, manifests, manifest, namespace, services)
        for field, reference in find(manifest, _OF_CONNECTIONS.get(manifest["kind"], "-")):
            if leads(reference):
                transport = reference.get("serversTransport")
                yield Entrance(
                    manifest, field, _everything, is_proxy=transport is not None, transport=transport
                )
        if manifest["kind"] in _ROUTES:
            yield from _ROUTES[manifest["kind"]](manifests, manifest, leads)


def ways_to_methods(manifests: Manifests) -> Iterator[Entrance]:
    """Yield each entrance to a server by which calls come to a method of the service."""
    for server in servers(manifests):
        yield from (way for way in entrances(manifests, server) if any(map(way.takes, METHODS)))


def _is_published(service: Manifest) -> bool:
    spec = service.get("spec") or {}
    return spec.get("type") in ("LoadBalancer", "NodePort") or bool(spec.get("externalIPs"))


def _of_host(server: Server, ports: set[str | int]) -> Iterator[Entrance]:
    """Yield what makes a port of the pod one of its node."""
    if server.pod.spec.get("hostNetwork"):
        field = f"{server.pod.field}spec.hostNetwork"
        yield Entrance(server.pod.workload, field, _everything, is_proxy=False)
    for field, port in find(server.container, "ports[]"):
        if port.get("hostPort") and port.get("containerPort") in ports:
            where = f"{server.field}.{field}.hostPort"
            yield Entrance(server.pod.workload, where, _everything, is_proxy=False)


def _leads(
    manifests: Manifests,
    manifest: Manifest,
    namespace: str,
    services: Mapping[str, Manifest],
    reference: Manifest,
    *,
    seen: Sequence[Manifest] = (),
) -> bool:
    """Return whether a reference to a Service, or to a TraefikService, is to one of the services."""
    where, name = reference.get("namespace") or metadata(manifest, "namespace"), reference.get("name", "")
    if reference.get("kind") != "TraefikService":
        alias = get(manifests.named("Service", name, where) or {}, "spec.externalName") or ""
        named = re.fullmatch(r"([^.]+)\.([^.]+)(\.svc(\..*)?)?", alias)
        return (where == namespace and name in services) or (
            named is not None and named[2] == namespace and named[1] in services
        )
    found = manifests.named("TraefikService", name, where)
    return (
        found is not None
        and found not in seen
        and any(
            _leads(manifests, found, namespace, services, each, seen=[*seen, found])
            for each in _spread_over(found)
        )
    )


def _everything(_: str) -> bool:
    return True


def _spread_over(service: Manifest) -> Iterator[Manifest]:
    for path in (
        "spec.weighted.services[]",
        "spec.mirroring.mirrors[]",
        "spec.highestRandomWeight.services[]",
    ):
        yield from (reference for _, reference in find(service, path))
    if mirrored := get(service, "spec.mirroring"):
        yield mirrored


def _traefik(manifests: Manifests, route: Manifest, leads: Callable[[Any], bool]) -> Iterator[Entrance]:
    for field, rule in find(route, "spec.routes[]"):
        for reference in rule.get("services") or []:
            if leads(reference):
                # Older rules may have patterns in their paths.
                is_pattern = rule.get("syntax") == "v2" and "{" in rule.get("match", "")
                rewrites = is_pattern or _rewrites(manifests, route, rule)
                takes = partial(_traefik_takes, rewrites, rule.get("match", ""))
                yield Entrance(route, field, takes, transport=reference.get("serversTransport", ""))


def _traefik_takes(rewrites: bool, rule: str, path: str) -> bool:  # noqa: FBT001 (of a partial)
    return rewrites or True in traefik_answers(rule, path)


def _rewrites(manifests: Manifests, route: Manifest, rule: Manifest) -> bool:
    found = middlewares(manifests, rule.get("middlewares") or [], metadata(route, "namespace"))
    # One that is not here may do anything; references.py tells of it.
    return any(spec is None or set(_REWRITES) & set(spec) for spec in found)


def _nginx(_: Manifests, ingress: Manifest, leads: Callable[[Any], bool]) -> Iterator[Entrance]:
    default = get(ingress, "spec.defaultBackend.service")
    if default and leads(default):
        yield Entrance(ingress, "spec.defaultBackend", _everything)
    for field, path in find(ingress, "spec.rules[].http.paths[]"):
        if leads(get(path, "backend.service") or {}):
            yield Entrance(ingress, field, partial(nginx_takes, ingress, path.get("path", "")))


def nginx_takes(ingress: Manifest, place: str, path: str) -> bool:
    """Return whether the path that an Ingress names takes that of a call."""
    given = annotations(ingress)
    if _NGINX_REWRITES & given.keys():
        return True
    if given.get(f"{_NGINX}use-regex") == "true":
        try:
            return re.match(place, path, re.IGNORECASE) is not None
        except re.PatternError:  # nginx's language is another one
            return True
    return path.startswith(place)


def _of_gateway(manifests: Manifests, route: Manifest, leads: Callable[[Any], bool]) -> Iterator[Entrance]:
    """Yield the rules of a GRPCRoute or an HTTPRoute; one of a Service is of a mesh, and not from outside."""
    parents = [parent.get("kind", "Gateway") for _, parent in find(route, "spec.parentRefs[]")]
    if parents and set(parents) == {"Service"}:
        return
    for field, rule in find(route, "spec.rules[]"):
        if any(map(leads, _of_rule(rule))):
            is_grpc = route["kind"] == "GRPCRoute"
            takes = partial(_grpc_takes, manifests, route, field) if is_grpc else partial(_http_takes, rule)
            yield Entrance(route, field, takes)


def _of_rule(rule: Manifest) -> Iterator[Manifest]:
    """Yield what calls are sent to, and what gets copies of them."""
    for path in ("backendRefs[]", "filters[].requestMirror.backendRef"):
        yield from (reference for _, reference in find(rule, path))
    yield from (each for _, each in find(rule, "backendRefs[].filters[].requestMirror.backendRef"))


def _http_takes(rule: Manifest, path: str) -> bool:
    rewrites = "URLRewrite" in [kind for _, kind in find(rule, "filters[].type")]
    return rewrites or any(_is_at(match.get("path") or {}, path) for match in rule.get("matches") or [{}])


def _is_at(place: Manifest, path: str) -> bool:
    value = place.get("value", "/")
    match place.get("type", "PathPrefix"):
        case "Exact":
            return bool(path == value)
        case "PathPrefix":
            return f"{path}/".startswith(f"{value.rstrip('/')}/")
    return True


def _grpc_takes(manifests: Manifests, route: Manifest, field: str, path: str) -> bool:
    return any(taker.route is route and taker.field == field for taker in takers(manifests, path))


def _mesh(manifests: Manifests, service: Manifest, leads: Callable[[Any], bool]) -> Iterator[Entrance]:
    """A VirtualService is from outside if it names a gateway other than the sidecars' own, mesh."""
    if is_inside(service) and not any(
        _delegates(each, service) for each in manifests.of_kind("VirtualService") if not is_inside(each)
    ):
        return
    for kind in ("http", "tls", "tcp"):
        takes = partial(_mesh_takes, service) if kind == "http" else _everything
        for place in ("route[].destination", "mirror", "mirrors[].destination"):
            for field, destination in find(service, f"spec.{kind}[].{place}"):
                name, _, rest = destination["host"].partition(".")
                if leads({"name": name, "namespace": rest.split(".")[0]}):
                    yield Entrance(service, field, takes, is_proxy=kind == "http")


def _delegates(service: Manifest, to: Manifest) -> bool:
    """Return whether a VirtualService leaves some of its calls to another one."""
    return any(
        (each["name"], each.get("namespace") or metadata(service, "namespace"))
        == (metadata(to, "name"), metadata(to, "namespace"))
        for _, each in find(service, "spec.http[].delegate")
    )


def _mesh_takes(service: Manifest, path: str) -> bool:
    rewrites = any(find(service, "spec.http[].rewrite"))
    return rewrites or next(istio_routes(service, path), None) is not None


_ROUTES: dict[str, Callable[[Manifests, Manifest, Callable[[Any], bool]], Iterator[Entrance]]] = {
    "GRPCRoute": _of_gateway,
    "HTTPRoute": _of_gateway,
    "Ingress": _nginx,
    "IngressRoute": _traefik,
    "VirtualService": _mesh,
}
