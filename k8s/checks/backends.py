"""Ingresses, routes and policies of a mesh lead to Services that exist, at ports that they have."""

from collections.abc import Iterator
from dataclasses import dataclass

from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, find, get, metadata

_ROUTES = {
    "GRPCRoute": "spec.rules[].backendRefs[]",
    "HTTPRoute": "spec.rules[].backendRefs[]",
    "IngressRoute": "spec.routes[].services[]",
}
"""Fields with kind (a Service if it is not said), name and port."""

_INGRESS = ["spec.defaultBackend.service", "spec.rules[].http.paths[].backend.service"]


@dataclass(frozen=True)
class Backend:
    """Where calls are sent."""

    manifest: Manifest
    field: str
    service: str
    namespace: str
    port: str | int | None
    """Its name or its number; None takes the only one."""
    reference: Manifest
    """What else is said where it is named."""


def backends(manifests: Manifests) -> Iterator[Backend]:
    """Yield each Service that something sends calls to."""
    for manifest in manifests.objects:
        yield from _of_route(manifest)
        yield from _of_ingress(manifest)
        yield from _of_mesh(manifest)


def _of_route(manifest: Manifest) -> Iterator[Backend]:
    for field, reference in find(manifest, _ROUTES.get(manifest["kind"], "")):
        if reference.get("kind", "Service") == "Service":
            namespace = reference.get("namespace") or metadata(manifest, "namespace")
            yield Backend(manifest, field, reference["name"], namespace, reference.get("port"), reference)


def _of_ingress(manifest: Manifest) -> Iterator[Backend]:
    for path in _INGRESS if manifest["kind"] == "Ingress" else []:
        for field, service in find(manifest, path):
            port = get(service, "port.name") or get(service, "port.number")
            yield Backend(manifest, field, service["name"], metadata(manifest, "namespace"), port, service)


def _of_mesh(manifest: Manifest) -> Iterator[Backend]:
    if manifest["kind"] == "VirtualService":
        for field, destination in find(manifest, "spec.http[].route[].destination"):
            yield _of_host(manifest, field, destination["host"], get(destination, "port.number"))
    if manifest["kind"] == "DestinationRule":
        host = manifest["spec"]["host"]
        yield _of_host(manifest, "spec.host", host, None)
        for field, number in find(manifest, "spec.trafficPolicy.portLevelSettings[].port.number"):
            yield _of_host(manifest, field, host, number)


def _of_host(manifest: Manifest, field: str, host: str, port: int | None) -> Backend:
    """Return the Service of a mesh's host: `name`, `name.namespace` or what DNS has of it."""
    name, _, rest = host.partition(".")
    return Backend(manifest, field, name, rest.split(".")[0] or metadata(manifest, "namespace"), port, {})


def leading_to(manifests: Manifests, pod: Pod) -> list[Backend]:
    """Return the backends whose Service sends calls to a pod."""
    names = [metadata(service, "name") for service in manifests.services_of(pod)]
    namespace = metadata(pod.workload, "namespace")
    return [each for each in backends(manifests) if each.service in names and each.namespace == namespace]


def lead_to_services(manifests: Manifests) -> Iterator[Problem]:
    """Each backend is a Service with that port."""
    for backend in backends(manifests):
        service = manifests.named("Service", backend.service, backend.namespace)
        if service is None:
            if not manifests.exists("Service", backend.service, backend.namespace):
                what = f"there is no Service {backend.service} in namespace {backend.namespace!r}"
                yield Problem(backend.manifest, backend.field, what, "name one that is there")
            continue
        ports = get(service, "spec.ports") or []
        has = [port[key] for port in ports for key in ("name", "port") if key in port]
        if backend.port not in has and (backend.port is not None or len(ports) != 1):
            what = f"Service {backend.service} has no port {backend.port}"
            fix = f"take one of {', '.join(map(str, has))}"
            yield Problem(backend.manifest, backend.field, what, fix)


def take_subsets_that_exist(manifests: Manifests) -> Iterator[Problem]:
    """A VirtualService's subsets are in a DestinationRule, and have pods."""
    rules = manifests.of_kind("DestinationRule")
    subsets = {subset["name"] for rule in rules for _, subset in find(rule, "spec.subsets[]")}
    for service in manifests.of_kind("VirtualService"):
        for field, name in find(service, "spec.http[].route[].destination.subset"):
            if name not in subsets:
                yield Problem(service, field, f"no DestinationRule has a subset {name}", "define it there")
    for rule in rules:
        for field, subset in find(rule, "spec.subsets[]"):
            labels = {"matchLabels": subset.get("labels") or {}}
            if not manifests.select(labels, metadata(rule, "namespace")):
                what = f"{subset.get('labels')} matches no pod"
                yield Problem(rule, f"{field}.labels", what, "select labels that the pods have")
