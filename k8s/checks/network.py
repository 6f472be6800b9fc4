"""Network policies let pass what servers need: what none of them opens is closed, and nobody is told."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from k8s.checks.backends import leading_to
from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, find, get, metadata, title
from k8s.checks.mesh import has_sidecar, is_inside, moves_annotations
from k8s.checks.scraping import scrapes
from k8s.checks.servers import Program, pods_of_programs, programs, servers
from tools.kubernetes.labels import matches

_NAME = "kubernetes.io/metadata.name"
"""The label with its name that every namespace has."""

_ISTIOD = 15012
"""The port where a sidecar has certificate and configuration from; without them its pod is never ready."""

_MERGED = 15020
"""The port of a sidecar with its own metrics and those of its pod."""

_PROXIES = ("GRPCRoute", "HTTPRoute", "Ingress", "IngressRoute")


def deny_by_default(manifests: Manifests) -> Iterator[Problem]:
    """Where policies are used, one closes every pod of the namespace, in both directions."""
    for server in servers(manifests):
        policies = _of_namespace(manifests, server.pod)
        closed = {
            direction
            for policy in policies
            if not any((get(policy, "spec.podSelector") or {}).values())
            for direction in _directions(policy)
        }
        for direction in ("Ingress", "Egress"):
            if policies and direction not in closed:
                what = f"{direction} is open for every pod that no policy selects"
                fix = f"add a policy with `podSelector: {{}}` and `policyTypes: [{direction}]`"
                yield Problem(policies[0], "spec.policyTypes", what, fix)


def lead_somewhere(manifests: Manifests) -> Iterator[Problem]:
    """No way out of a server or a migration leads everywhere."""
    pods = pods_of_programs(manifests)
    for policy in manifests.of_kind("NetworkPolicy"):
        for field, rule in find(policy, "spec.egress[]"):
            if _is_everywhere(rule) and any(selects(policy, pod) for pod in pods):
                fix = "name a namespace, pods, or the addresses in `to`"
                yield Problem(policy, field, "leads everywhere", fix)


def _is_everywhere(rule: Manifest) -> bool:
    blocks = [peer.get("ipBlock") or {} for peer in rule.get("to") or []]
    return not blocks or any(
        str(block.get("cidr")).endswith("/0") and not block.get("except") for block in blocks
    )


def let_programs_out(manifests: Manifests) -> Iterator[Problem]:
    """Each program reaches DNS, and what its variables name: database, collector, servers to call."""
    for program in programs(manifests):
        rules = _rules(manifests, program.pod, "Egress")
        for host, port, what_for in _dialled(program):
            if not any(_reaches(manifests, program.pod, rule, host, port) for rule in rules):
                place = f" of {host}" if host else ""
                what = f"no NetworkPolicy lets it out to port {port}{place} ({what_for})"
                yield Problem(program.pod.workload, program.field, what, "add one that does")


def _dialled(program: Program) -> Iterator[tuple[str, int, str]]:
    """Yield host, port and who says so; the host is empty where only the cluster knows it."""
    yield "", 53, "DNS"
    url = program.environment.get("DATABASE_URL", "")
    if url is None:
        yield "", 5432, "DATABASE_URL"
    elif url.startswith("postgresql"):
        for each in url.partition("://")[2].partition("/")[0].rpartition("@")[2].split(","):
            yield *_place(f"//{each}", 5432), "DATABASE_URL"
    if endpoint := program.environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        yield *_place(endpoint, 4317), "OTEL_EXPORTER_OTLP_ENDPOINT"
    if target := program.environment.get("SMOKE_TARGET"):
        yield *_place(f"//{target.rpartition('/')[2]}", 443), "SMOKE_TARGET"


def _place(url: str, default: int) -> tuple[str, int]:
    """Return host and port of a URL; one that is none has no host."""
    try:
        place = urlsplit(url)
        host, port = place.hostname, place.port
    except ValueError:  # whose message has part of the password; configuration.py tells of it
        return "", default
    return host or "", port or default


def _reaches(manifests: Manifests, pod: Pod, rule: Manifest, host: str, port: int) -> bool:
    """Return whether a rule lets a pod out to a host: the pods of a Service here, or what may be one."""
    own = metadata(pod.workload, "namespace")
    name, *rest = host.split(".")
    service = manifests.named("Service", name, rest[0] if rest else own)
    peers = rule.get("to") or []
    if not peers or not host:
        return _opens(rule, {port})
    if service is None:
        # Of a longer name nobody here knows whether it is a Service's.
        namespace = rest[0] if len(rest) == 1 or rest[1:2] == ["svc"] else None
        return _opens(rule, {port}) and any(_leads_out(peer, namespace) for peer in peers)
    return any(
        _opens(rule, _same(each, port)) and any(_admits(peer, own, each) for peer in peers)
        for each in manifests.behind(service)
    )


def _leads_out(peer: Manifest, namespace: str | None) -> bool:
    """Return whether a peer may be outside of the pod's own namespace: in this one, if it is known."""
    named = (get(peer, "namespaceSelector.matchLabels") or {}).get(_NAME)
    there = "namespaceSelector" in peer and (named is None or namespace in (None, named))
    return "ipBlock" in peer or there


def _admits(peer: Manifest, own: str, pod: Pod) -> bool:
    namespace = metadata(pod.workload, "namespace")
    selector = peer.get("namespaceSelector")
    here = namespace == own if selector is None else matches(selector, {_NAME: namespace})
    return "ipBlock" not in peer and here and matches(peer.get("podSelector") or {}, pod.labels)


def let_servers_out_to_issuers(manifests: Manifests) -> Iterator[Problem]:
    """Each server that takes the keys of tokens from a URL reaches it; else every token is UNAVAILABLE."""
    for server in servers(manifests):
        url = server.config.server.jwt.jwks if server.config.server.jwt else ""
        scheme, _, _ = url.partition("://")
        if scheme in ("http", "https"):
            _, port = _place(url, 443 if scheme == "https" else 80)
            if not any(_opens(rule, {port}) for rule in _rules(manifests, server.pod, "Egress")):
                what = f"no NetworkPolicy lets it out to port {port} (server.jwt.jwks)"
                yield server.problem("env", what, "add one that does, or mount the keys as a file")


def let_sidecars_out(manifests: Manifests) -> Iterator[Problem]:
    """Each sidecar of a mesh reaches istiod."""
    for pod in manifests.pods:
        rules = _rules(manifests, pod, "Egress")
        if has_sidecar(manifests, pod) and not any(_opens(rule, {_ISTIOD}) for rule in rules):
            what = f"no NetworkPolicy lets its sidecar out to port {_ISTIOD} (istiod)"
            yield pod.problem("metadata.labels", what, "add one that does")


def let_scrapers_in(manifests: Manifests) -> Iterator[Problem]:
    """The ports that monitors and annotations have scraped are open to somebody."""
    for pod in manifests.pods:
        rules = _rules(manifests, pod, "Ingress")
        for scrape in scrapes(manifests, pod):
            # Numbers are of annotations alone.
            moved = isinstance(scrape.port, int) and moves_annotations(manifests, pod)
            port = _MERGED if moved else scrape.port
            if not any(_opens(rule, _same(pod, port)) for rule in rules):
                yield _kept_out(scrape.manifest, scrape.field, pod, port)


def let_proxies_in(manifests: Manifests) -> Iterator[Problem]:
    """The pods behind an edge let in more than clients that are pods: a proxy has no label of theirs."""
    for server in servers(manifests):
        pod, port = server.pod, server.config.server.port
        rules = [rule for rule in _rules(manifests, pod, "Ingress") if _opens(rule, _same(pod, port))]
        for backend in leading_to(manifests, pod):
            if _is_proxy(backend.manifest) and not any(map(_names_a_place, rules)):
                yield _kept_out(backend.manifest, backend.field, pod, port)


def _is_proxy(manifest: Manifest) -> bool:
    of_gateway = manifest["kind"] == "VirtualService" and not is_inside(manifest)
    return of_gateway or manifest["kind"] in _PROXIES


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
        for policy in _of_namespace(manifests, pod)
        if selects(policy, pod) and direction in _directions(policy)
    ]
    found = [rule for policy in policies for _, rule in find(policy, f"spec.{direction.lower()}[]")]
    return found if policies else [{}]


def _of_namespace(manifests: Manifests, pod: Pod) -> list[Manifest]:
    namespace = metadata(pod.workload, "namespace")
    return [each for each in manifests.of_kind("NetworkPolicy") if metadata(each, "namespace") == namespace]


def selects(policy: Manifest, pod: Pod) -> bool:
    """Return whether a NetworkPolicy is about a pod."""
    here = metadata(policy, "namespace") == metadata(pod.workload, "namespace")
    return here and matches(get(policy, "spec.podSelector") or {}, pod.labels)


def _directions(policy: Manifest) -> list[str]:
    """Return what a policy closes; without policyTypes Ingress, and Egress if it has rules for it."""
    given: list[str] | None = get(policy, "spec.policyTypes")
    return given or ["Ingress", *(["Egress"] if get(policy, "spec.egress") else [])]


def _opens(rule: Manifest, same: set[str | int]) -> bool:
    return any(_includes(port, each) for port in rule.get("ports") or [{}] for each in same)


def _includes(port: Manifest, number: str | int) -> bool:
    first, last = port.get("port"), port.get("endPort")
    if isinstance(first, int) and isinstance(number, int) and last is not None:
        return bool(first <= number <= last)
    return first is None or first == number


def _names_a_place(rule: Manifest) -> bool:
    """Return whether a rule lets in a namespace by its labels, a range of addresses, or everybody."""
    peers = rule.get("from")
    return not peers or any(peer.get("namespaceSelector") or peer.get("ipBlock") for peer in peers)
