"""What Istio makes of pods and their Services, and which routes of a VirtualService may take a call."""

import re
from collections.abc import Iterator

from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, annotations, find, get, metadata
from k8s.checks.servers import servers

_INJECT = "sidecar.istio.io/inject"
_REVISION = "istio.io/rev"

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


def has_sidecar(manifests: Manifests, pod: Pod) -> bool:
    """Return whether Istio gives a pod a sidecar: the pod itself decides, or else its namespace."""
    own = pod.labels.get(_INJECT, annotations(pod.template).get(_INJECT))
    if own is not None:
        return own == "true"
    namespace = manifests.named("Namespace", metadata(pod.workload, "namespace"), "") or {}
    labels = get(namespace, "metadata.labels") or {}
    return labels.get("istio-injection") == "enabled" or _REVISION in {**labels, **pod.labels}


def name_grpc_as_such(manifests: Manifests) -> Iterator[Problem]:
    """In a mesh each Service says of a server's port that it is gRPC: Istio goes by that, and not by the calls."""
    for server in servers(manifests):
        if server.config.server.tls.directory or not has_sidecar(manifests, server.pod):
            continue
        for service in manifests.services_of(server.pod):
            for field, port in find(service, "spec.ports[]"):
                if port.get("targetPort", port["port"]) in server.ports and _protocol(port) != "grpc":
                    key = "appProtocol" if "appProtocol" in port else "name"
                    what = f"is {port.get(key)}, so that Istio does not take it for gRPC"
                    yield Problem(service, f"{field}.{key}", what, "set appProtocol to grpc")


def _protocol(port: Manifest) -> str:
    """Return what Istio takes the protocol of a Service's port for: appProtocol, or else the name up to a hyphen."""
    given = str(port.get("appProtocol", port.get("name", ""))).lower()
    return "grpc-web" if given.startswith("grpc-web") else given.partition("-")[0]
