"""Network policies let pass what servers need: what none of them opens is closed, and nobody is told."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from k8s.checks.backends import leading_to
from k8s.checks.labels import matches
from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, find, get, metadata, title
from k8s.checks.servers import Program, programs, servers

_PROXIES = ("GRPCRoute", "HTTPRoute", "Ingress", "IngressRoute")


def let_programs_out(manifests: Manifests) -> Iterator[Problem]:
    """Each server and migration reaches DNS, and what its variables name: database and collector."""
    for program in programs(manifests):
        rules = _rules(manifests, program.pod, "Egress")
        for port, what_for in _dialled(program):
            if not any(_opens(rule, {port}) for rule in rules):
                what = f"no NetworkPolicy lets it out to port {port} ({what_for})"
                yield Problem(program.pod.workload, program.field, what, "add one that does")


def _dialled(program: Program) -> Iterator[tuple[int, str]]:
    yield 53, "DNS"
    url = program.environment.get("DATABASE_URL", "")
    if url is None or url.startswith("postgresql"):
        yield _port(url or "", 5432), "DATABASE_URL"
    if endpoint := program.environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        yield _port(endpoint, 4317), "OTEL_EXPORTER_OTLP_ENDPOINT"


def _port(url: str, default: int) -> int:
    try:
        return urlsplit(url).port or default
    except ValueError:  # whose message has part of the password; configuration.py tells of it
        return default


def let_servers_out_to_issuers(manifests: Manifests) -> Iterator[Problem]:
    """Each server that takes the keys of tokens from a URL reaches it; else every token is UNAVAILABLE."""
    for server in servers(manifests):
        url = server.config.server.jwt.jwks if server.config.server.jwt else ""
        scheme, _, _ = url.partition("://")
        if scheme in ("http", "https"):
            port = _port(url, 443 if scheme == "https" else 80)
            if not any(_opens(rule, {port}) for rule in _rules(manifests, server.pod, "Egress")):
                what = f"no NetworkPolicy lets it out to port {port} (server.jwt.jwks)"
                yield server.problem("env", what, "add one that does, or mount the keys as a file")


def let_scrapers_in(manifests: Manifests) -> Iterator[Problem]:
    """The ports that a PodMonitor has scraped are open to somebody."""
    for monitor in manifests.of_kind("PodMonitor"):
        for pod in manifests.select(get(monitor, "spec.selector") or {}, metadata(monitor, "namespace")):
            for field, port in find(monitor, "spec.podMetricsEndpoints[].port"):
                if not any(_opens(rule, _same(pod, port)) for rule in _rules(manifests, pod, "Ingress")):
                    yield _kept_out(monitor, field, pod, port)


def let_proxies_in(manifests: Manifests) -> Iterator[Problem]:
    """The pods behind an edge let in more than clients that are pods: a proxy has no label of theirs."""
    for server in servers(manifests):
        pod, port = server.pod, server.config.server.port
        rules = [rule for rule in _rules(manifests, pod, "Ingress") if _opens(rule, _same(pod, port))]
        for backend in leading_to(manifests, pod):
            if backend.manifest["kind"] in _PROXIES and not any(map(_names_a_place, rules)):
                yield _kept_out(backend.manifest, backend.field, pod, port)


def _kept_out(manifest: Manifest, field: str, pod: Pod, port: str | int) -> Problem:
    what = f"no NetworkPolicy opens port {port} of {title(pod.workload)} to it"
    return Problem(manifest, field, what, "add one with the namespace that it is in")


def _same(pod: Pod, port: str | int) -> set[str | int]:
    """Return the name and the number of a container port."""
    declared = [each for _, container in pod.containers for each in container.get("ports") or []]
    pairs = [{each[key] for key in ("name", "containerPort") if key in each} for each in declared]
    return {port}.union(*(pair for pair in pairs if port in pair))


def _rules(manifests: Manifests, pod: Pod, direction: str) -> list[Manifest]:
    """Return what lets calls into a pod or out of it: one rule for all, if no policy closes it."""
    policies = [
        policy
        for policy in manifests.of_kind("NetworkPolicy")
        if metadata(policy, "namespace") == metadata(pod.workload, "namespace")
        and matches(get(policy, "spec.podSelector") or {}, pod.labels)
        and direction in (get(policy, "spec.policyTypes") or ["Ingress"])
    ]
    found = [rule for policy in policies for _, rule in find(policy, f"spec.{direction.lower()}[]")]
    return found if policies else [{}]


def _opens(rule: Manifest, same: set[str | int]) -> bool:
    ports = rule.get("ports") or [{}]
    return any(port.get("port") is None or port["port"] in same for port in ports)


def _names_a_place(rule: Manifest) -> bool:
    """Return whether a rule lets in a namespace by its labels, a range of addresses, or everybody."""
    peers = rule.get("from")
    return not peers or any(peer.get("namespaceSelector") or peer.get("ipBlock") for peer in peers)
