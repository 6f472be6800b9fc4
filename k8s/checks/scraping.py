"""Prometheus scrapes each pod once, at a port that it has."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, annotations, find, get, metadata, title
from k8s.checks.servers import servers
from tools.kubernetes.labels import matches

_ANNOTATION = "prometheus.io/scrape"
_PORT = "prometheus.io/port"

_NAMESPACE = re.compile(r'\bnamespace="([^"]+)"')


@dataclass(frozen=True)
class Scrape:
    """What has a pod scraped."""

    manifest: Manifest
    field: str
    port: str | int
    """Name or number of a container port."""


def scrapes(manifests: Manifests, pod: Pod) -> Iterator[Scrape]:
    """Yield what has a pod scraped: monitors of Prometheus Operator, and the annotations that many take."""
    for monitor in manifests.of_kind("PodMonitor"):
        if pod in manifests.select(get(monitor, "spec.selector") or {}, metadata(monitor, "namespace")):
            for field, port in find(monitor, "spec.podMetricsEndpoints[].port"):
                yield Scrape(monitor, field, port)
    for service in manifests.services_of(pod):
        yield from _through(manifests, service)
        yield from _annotated(service, "metadata.annotations", annotations(service))
    yield from _annotated(
        pod.workload, f"{pod.field}metadata.annotations", get(pod.template, "metadata.annotations") or {}
    )


def _through(manifests: Manifests, service: Manifest) -> Iterator[Scrape]:
    ports = {port.get("name"): port for _, port in find(service, "spec.ports[]")}
    for monitor in manifests.of_kind("ServiceMonitor"):
        if matches(get(monitor, "spec.selector") or {}, get(service, "metadata.labels") or {}):
            for field, name in find(monitor, "spec.endpoints[].port"):
                if name in ports:
                    yield Scrape(monitor, field, ports[name].get("targetPort", ports[name]["port"]))


def _annotated(manifest: Manifest, field: str, given: Manifest) -> Iterator[Scrape]:
    port = str(given.get(_PORT, ""))
    if given.get(_ANNOTATION) == "true" and port.isdecimal():
        yield Scrape(manifest, f"{field}[{_ANNOTATION}]", int(port))


def scrape_once(manifests: Manifests) -> Iterator[Problem]:
    """No port of a pod is scraped twice: rates of sums would be twice what they are."""
    for pod in manifests.pods:
        first: dict[str | int, Scrape] = {}
        for scrape in scrapes(manifests, pod):
            number = _number(pod, scrape.port)
            if number in first:
                what = f"has {title(pod.workload)} scraped, as {title(first[number].manifest)} does already"
                yield Problem(scrape.manifest, scrape.field, what, "leave one of them out")
            first.setdefault(number, scrape)


def annotate_container_ports(manifests: Manifests) -> Iterator[Problem]:
    """The port of an annotation is a container port."""
    for pod in manifests.pods:
        numbers = [port["containerPort"] for _, port in _ports(pod)]
        for scrape in scrapes(manifests, pod):
            if isinstance(scrape.port, int) and scrape.port not in numbers:
                what = f"{title(pod.workload)} has no container port {scrape.port}"
                yield Problem(scrape.manifest, scrape.field, what, f"take one of {numbers}")


def watch_their_own_namespace(manifests: Manifests) -> Iterator[Problem]:
    """Rules beside a server tell of its namespace: those of another one stay silent, or ring for nothing."""
    serving = {metadata(server.pod.workload, "namespace") for server in servers(manifests)}
    for rule in manifests.of_kind("PrometheusRule"):
        own = metadata(rule, "namespace")
        expressions = find(rule, "spec.groups[].rules[].expr")
        found = [(field, _NAMESPACE.findall(text)) for field, text in expressions]
        watched = sorted({name for _, names in found for name in names})
        if own and own in serving and watched and own not in watched:
            field = next(field for field, names in found if names)
            what = f"and all others tell of namespace {', '.join(watched)}, and not of {own}"
            fix = "name it, as the transformer k8s/components/monitoring/namespace does"
            yield Problem(rule, field, what, fix)


def _number(pod: Pod, port: str | int) -> str | int:
    return next((each["containerPort"] for _, each in _ports(pod) if each.get("name") == port), port)


def _ports(pod: Pod) -> list[tuple[str, Manifest]]:
    return list(pod.find("spec.containers[].ports[]"))
