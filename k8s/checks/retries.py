"""No proxy repeats a method that is not safe to repeat: CreateUser would create a second user."""

import re
from collections.abc import Iterator

from k8s.checks.gateways import takers
from k8s.checks.manifests import Manifests, Problem, annotations, find, get, metadata
from k8s.checks.mesh import istio_routes
from k8s.checks.methods import UNSAFE
from k8s.checks.servers import servers
from k8s.checks.traefik import traefik_answers

_MESH = ("DestinationRule", "PeerAuthentication", "VirtualService")

_NGINX_REPEATS = re.compile(r"grpc_next_upstream\s[^;]*\bnon_idempotent\b")


def repeat_nothing_unsafe_in_a_mesh(manifests: Manifests) -> Iterator[Problem]:
    """Each route of a VirtualService that may take an unsafe method has attempts: 0; Istio's default is 2."""
    for service in manifests.of_kind("VirtualService"):
        for path in UNSAFE:
            for field, rule in istio_routes(service, path):
                attempts = get(rule, "retries.attempts")
                if attempts != 0:
                    found = "is missing, so Istio takes 2" if attempts is None else f"is {attempts}"
                    what = f"{found}, and the route may take {path}, which must not be repeated"
                    yield Problem(service, f"{field}.retries.attempts", what, "set it to 0")


def route_every_name_in_a_mesh(manifests: Manifests) -> Iterator[Problem]:
    """Each Service with calls for a server is a host of a VirtualService: else Istio's default of 2 holds."""
    routes = manifests.of_kind("VirtualService")
    hosts = {host.partition(".")[0] for route in routes for _, host in find(route, "spec.hosts[]")}
    for server in servers(manifests) if manifests.of_kind(*_MESH) else ():
        for service in manifests.services_of(server.pod):
            if any(server.ports_of(service)) and metadata(service, "name") not in hosts:
                what = f"is no host of a VirtualService, so Istio repeats {UNSAFE[0]} twice"
                yield Problem(service, "metadata.name", what, "add it to the VirtualService's hosts")


def repeat_nothing_unsafe_behind_nginx(manifests: Manifests) -> Iterator[Problem]:
    """No snippet has nginx repeat calls that were sent; its annotations do not reach gRPC's directives."""
    for ingress in manifests.of_kind("Ingress"):
        for key, value in annotations(ingress).items():
            if _NGINX_REPEATS.search(value):
                what = f"non_idempotent repeats every call, {UNSAFE[0]} too"
                yield Problem(ingress, f"metadata.annotations[{key}]", what, "leave it out")


def repeat_nothing_unsafe_behind_traefik(manifests: Manifests) -> Iterator[Problem]:
    """No route that may take an unsafe method has a retry middleware that repeats what was sent.

    Traefik does so only where the middleware says `status` or `retryNonIdempotentMethod`.
    """
    for route in manifests.of_kind("IngressRoute"):
        for field, rule in find(route, "spec.routes[]"):
            unsafe = [path for path in UNSAFE if True in traefik_answers(rule["match"], path)]
            for reference in rule.get("middlewares") or []:
                middleware = manifests.named("Middleware", reference["name"], metadata(route, "namespace"))
                retry = (get(middleware, "spec.retry") if middleware else None) or {}
                if unsafe and (retry.get("status") or retry.get("retryNonIdempotentMethod")):
                    what = f"{reference['name']} repeats {unsafe[0]}, which must not be repeated"
                    fix = "give the other methods a route of their own, or repeat only what was not sent"
                    yield Problem(route, f"{field}.middlewares", what, fix)


def repeat_nothing_unsafe_behind_a_gateway(manifests: Manifests) -> Iterator[Problem]:
    """No rule of a GRPCRoute that may take an unsafe method has a policy of Envoy Gateway with retries."""
    for path in UNSAFE:
        for taker in takers(manifests, path):
            policy = next((each for each in taker.policies if get(each, "spec.retry")), None)
            if policy and get(policy, "spec.retry.numRetries") != 0:
                what = f"BackendTrafficPolicy {metadata(policy, 'name')} repeats {path}"
                fix = "let the policy's targetRefs name, by sectionName, rules without it"
                yield Problem(taker.route, taker.field, what, fix)
