"""What Istio makes of pods and their Services, and which routes of a VirtualService may take a call."""

import re
from collections.abc import Iterator

from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, annotations, find, get, metadata
from k8s.checks.methods import METHODS
from k8s.checks.servers import Server, programs, servers

_INJECT = "sidecar.istio.io/inject"
_NATIVE = "sidecar.istio.io/nativeSidecar"
_REVISION = "istio.io/rev"
_MERGE = "prometheus.istio.io/merge-metrics"

_CERTAIN = {True}
"""The answers of a route that takes a path, whatever else the call has: headers may decide otherwise."""


def istio_routes(virtual_service: Manifest, path: str) -> Iterator[tuple[str, Manifest]]:
    """Yield field and content of each http route that may take a path: the first that matches does."""
    for field, route in find(virtual_service, "spec.http[]"):
        answers = {answer for match in route.get("match") or [{}] for answer in _answers(match, path)}
        if True in answers:
            yield field, route
        if any(_answers(match, path) == _CERTAIN for match in route.get("match") or [{}]):
            return


def _answers(match: Manifest, path: str) -> set[bool]:
    uri = match.get("uri") or {"prefix": ""}
    if match.get("ignoreUriCase") and "regex" not in uri:
        uri, path = {kind: value.lower() for kind, value in uri.items()}, path.lower()
    takes = (
        uri.get("exact") == path
        or ("prefix" in uri and path.startswith(uri["prefix"]))
        or ("regex" in uri and re.fullmatch(uri["regex"], path) is not None)
    )
    other_conditions = match.keys() - {"uri", "name", "ignoreUriCase"}
    return ({True, False} if other_conditions else _CERTAIN) if takes else {False}


def is_inside(service: Manifest) -> bool:
    """Return whether a VirtualService is of sidecars alone, whose gateway is called mesh."""
    return set(get(service, "spec.gateways") or ["mesh"]) == {"mesh"}


def has_sidecar(manifests: Manifests, pod: Pod) -> bool:
    """Return whether Istio gives a pod a sidecar: the pod itself decides, or else its namespace."""
    own = pod.labels.get(_INJECT, annotations(pod.template).get(_INJECT))
    if own is not None:
        return own == "true"
    namespace = manifests.named("Namespace", metadata(pod.workload, "namespace"), "") or {}
    labels = get(namespace, "metadata.labels") or {}
    return labels.get("istio-injection") == "enabled" or _REVISION in {**labels, **pod.labels}


def moves_annotations(manifests: Manifests, pod: Pod) -> bool:
    """Return whether Istio leads the annotations `prometheus.io/*` of a pod to its sidecar's own port."""
    return has_sidecar(manifests, pod) and annotations(pod.template).get(_MERGE) != "false"


def name_grpc_as_such(manifests: Manifests) -> Iterator[Problem]:
    """In a mesh each Service says of a server's port that it is gRPC: Istio goes by that alone."""
    for server in servers(manifests):
        if server.config.server.tls.directory or not has_sidecar(manifests, server.pod):
            continue
        for service in manifests.services_of(server.pod):
            for field, port in server.ports_of(service):
                if _protocol(port) != "grpc":
                    key = "appProtocol" if "appProtocol" in port else "name"
                    what = f"is {port.get(key)}, so that Istio does not take it for gRPC"
                    yield Problem(service, f"{field}.{key}", what, "set appProtocol to grpc")


def outlive_what_they_serve(manifests: Manifests) -> Iterator[Problem]:
    """The sidecar of a server ends after it, and that of a Job with it: Kubernetes knows it as a sidecar.

    The other kind ends 5 s after SIGTERM, while calls drain, and never by itself, so that no Job completes.
    """
    serving = [server.pod for server in servers(manifests)]
    for pod in manifests.pods:
        ends = pod in serving or pod.workload["kind"] in ("CronJob", "Job")
        if ends and has_sidecar(manifests, pod) and annotations(pod.template).get(_NATIVE) != "true":
            what = "does not say that the sidecar is a native one, which ends after the other containers"
            yield pod.problem(f"metadata.annotations[{_NATIVE}]", what, 'set it to "true"')


def call_from_within(manifests: Manifests) -> Iterator[Problem]:
    """What calls a server that takes mutual TLS of the mesh alone has a sidecar, too."""
    for program in programs(manifests):
        host = program.environment.get("SMOKE_TARGET") or ""
        own = metadata(program.pod.workload, "namespace")
        service = manifests.named("Service", host.rpartition("/")[2].partition(":")[0].partition(".")[0], own)
        behind = manifests.behind(service) if service else []
        if any(_is_strict(manifests, pod) for pod in behind) and not has_sidecar(manifests, program.pod):
            what = f"has no sidecar, and {host} takes mutual TLS of the mesh alone"
            yield program.pod.problem("metadata.labels", what, f'set {_INJECT} to "true", or leave it out')


def _is_strict(manifests: Manifests, pod: Pod) -> bool:
    return has_sidecar(manifests, pod) and any(
        get(each, "spec.mtls.mode") == "STRICT"
        and pod in manifests.select(get(each, "spec.selector") or {}, metadata(each, "namespace"))
        for each in manifests.of_kind("PeerAuthentication")
    )


def _protocol(port: Manifest) -> str:
    """Return what a Service's port is to Istio: appProtocol, or else the name up to a hyphen."""
    given = str(port.get("appProtocol", port.get("name", ""))).lower()
    return "grpc-web" if given.startswith("grpc-web") else given.partition("-")[0]


def name_callers(manifests: Manifests) -> Iterator[Problem]:
    """In a mesh whoever may call a method is named: a service account, not a namespace and not everybody."""
    for server in servers(manifests):
        policies = allowing(manifests, server)
        if not policies and has_sidecar(manifests, server.pod):
            what, fix = (
                "no AuthorizationPolicy says who of the mesh may call it",
                "add one with serviceAccounts",
            )
            yield server.problem("name", what, fix)
        for policy in policies:
            for field, rule in find(policy, "spec.rules[]"):
                if any(allows(server, rule, path) for path in METHODS) and not _names_accounts(rule):
                    what = "lets callers in who are not named"
                    fix = "name their serviceAccounts, or principals without *"
                    yield Problem(policy, f"{field}.from", what, fix)


def allow_what_there_is(manifests: Manifests) -> Iterator[Problem]:
    """Each path that a policy of a mesh opens is one of the server: a misspelt one opens nothing."""
    for server in servers(manifests):
        for policy in allowing(manifests, server):
            for field, operation in find(policy, "spec.rules[].to[].operation"):
                for pattern in operation.get("paths", []) if _is_of_calls(server, operation) else []:
                    if not any(_matches(pattern, path) for path in METHODS) and "/grpc." not in pattern:
                        what = f"{pattern} is no method of the server"
                        yield Problem(policy, f"{field}.paths", what, f"take some of {', '.join(METHODS)}")


def allowing(manifests: Manifests, server: Server) -> list[Manifest]:
    """Return the policies that let callers in to a server; if there are any, all else is denied."""
    return [
        each
        for each in manifests.of_kind("AuthorizationPolicy")
        if get(each, "spec.action") in (None, "ALLOW")
        and server.pod in manifests.select(get(each, "spec.selector") or {}, metadata(each, "namespace"))
    ]


def allows(server: Server, rule: Manifest, path: str) -> bool:
    """Return whether a rule of a policy lets somebody call a path of a server."""
    operations = [operation for _, operation in find(rule, "to[].operation")] or [{}]
    return any(
        _is_of_calls(server, each) and any(_matches(pattern, path) for pattern in each.get("paths", ["*"]))
        for each in operations
    )


def _is_of_calls(server: Server, operation: Manifest) -> bool:
    """Return whether an operation is about a port that takes calls."""
    ports = operation.get("ports")
    return ports is None or any(str(port) in ports for port in server.ports)


def _names_accounts(rule: Manifest) -> bool:
    sources = [source for _, source in find(rule, "from[].source")]
    return bool(sources) and all(
        source.get("serviceAccounts") or "*" not in source.get("principals", ["*"]) for source in sources
    )


def _matches(pattern: str, path: str) -> bool:
    """Return whether Istio takes a path for one of a pattern: a star is at its end or its beginning."""
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path.endswith(pattern[1:]) if pattern.startswith("*") else path == pattern
