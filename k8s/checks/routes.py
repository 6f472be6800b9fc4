"""Edges and meshes let the service's methods through: a misspelt path stops no one from applying it."""

from collections.abc import Callable, Iterator
from functools import partial

from k8s.checks.backends import leading_to
from k8s.checks.entrances import nginx_takes
from k8s.checks.gateways import takers
from k8s.checks.manifests import Manifest, Manifests, Problem, find
from k8s.checks.mesh import allowing, allows, istio_routes
from k8s.checks.methods import METHODS
from k8s.checks.servers import Server, servers
from k8s.checks.traefik import traefik_answers


def let_every_method_through(manifests: Manifests) -> Iterator[Problem]:
    """Each route to our servers takes each of the service's methods, and some policy of a mesh allows it."""
    for manifest, field, takes in _doors(manifests):
        for path in METHODS:
            if not takes(path):
                yield Problem(manifest, field, f"{path} is not let through", "name /user.UserService/ there")


def _doors(manifests: Manifests) -> Iterator[tuple[Manifest, str, Callable[[str], bool]]]:
    """Yield what leads to our servers, with the field that decides and whether it takes a path."""
    for server in servers(manifests):
        doors = {id(each.manifest): each.manifest for each in leading_to(manifests, server.pod)}
        for manifest in doors.values():
            if manifest["kind"] in _DECIDES:
                field, takes = _DECIDES[manifest["kind"]]
                yield manifest, field, partial(takes, manifests, manifest)
        if policies := allowing(manifests, server):
            yield policies[0], "spec.rules", partial(_allowed, server, policies)


def _traefik(_: Manifests, route: Manifest, path: str) -> bool:
    return any(True in traefik_answers(rule, path) for _, rule in find(route, "spec.routes[].match"))


def _nginx(_: Manifests, ingress: Manifest, path: str) -> bool:
    places = [place for _, place in find(ingress, "spec.rules[].http.paths[].path")]
    return any(nginx_takes(ingress, place, path) for place in places)


def _gateway(manifests: Manifests, route: Manifest, path: str) -> bool:
    return any(taker.route is route for taker in takers(manifests, path))


def _mesh(_: Manifests, service: Manifest, path: str) -> bool:
    return next(istio_routes(service, path), None) is not None


_DECIDES = {
    "GRPCRoute": ("spec.rules", _gateway),
    "Ingress": ("spec.rules", _nginx),
    "IngressRoute": ("spec.routes", _traefik),
    "VirtualService": ("spec.http", _mesh),
}


def _allowed(server: Server, policies: list[Manifest], path: str) -> bool:
    rules = [rule for policy in policies for _, rule in find(policy, "spec.rules[]")]
    return any(allows(server, rule, path) for rule in rules)
