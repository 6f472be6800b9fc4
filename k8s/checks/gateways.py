"""Which rules of a GRPCRoute may take a call and what Envoy Gateway says of them; the Gateways of Istio."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from k8s.checks.manifests import Manifest, Manifests, find, get, metadata

type _Target = tuple[str, str, str | None]


@dataclass(frozen=True)
class Taker:
    """A rule that may take a call."""

    route: Manifest
    field: str
    policies: list[Manifest]
    """The BackendTrafficPolicies that hold for it, the most specific one first."""


def takers(manifests: Manifests, path: str) -> Iterator[Taker]:
    """Yield each rule that may take a path: of those that match, the most specific one does."""
    for route in manifests.of_kind("GRPCRoute"):
        rules = list(find(route, "spec.rules[]"))
        matches = [match for _, rule in rules for match in _matches(rule) if "headers" not in match]
        most = max((_specificity(match, path) for match in matches if not _is_pattern(match)), default=0)
        for field, rule in rules:
            if any(_specificity(match, path) >= max(most, 0) for match in _matches(rule)):
                yield Taker(route, field, policies(manifests, route, rule))


def policies(manifests: Manifests, route: Manifest, rule: Manifest) -> list[Manifest]:
    """Return the BackendTrafficPolicies that hold for a rule of a route, the most specific one first."""
    return list(_policies(manifests, _targets(route, rule)))


def listeners(manifests: Manifests, route: Manifest, parent: Manifest) -> list[Manifest]:
    """Return the listeners that a route names by one of its parentRefs."""
    where = parent.get("namespace") or metadata(route, "namespace")
    gateway = manifests.named("Gateway", parent.get("name", ""), where) or {}
    named = parent.get("sectionName")
    return [each for _, each in find(gateway, "spec.listeners[]") if named in (None, each.get("name"))]


def istio_servers(manifests: Manifests, service: Manifest) -> list[Manifest]:
    """Return the servers of Istio's Gateways by which a VirtualService takes one of its hosts."""
    names = [name for _, name in find(service, "spec.gateways[]") if name != "mesh"]
    found = [manifests.named("Gateway", *istio_name(name, service)) or {} for name in names]
    asked = [host for _, host in find(service, "spec.hosts[]")]
    return [
        server
        for gateway in found
        for _, server in find(gateway, "spec.servers[]")
        if any(_same_host(each.rpartition("/")[2], host) for each in server["hosts"] for host in asked)
    ]


def istio_name(name: str, beside: Manifest) -> tuple[str, str]:
    """Return name and namespace of what Istio calls NAME or NAMESPACE/NAME."""
    namespace, _, short = name.rpartition("/")
    return short, metadata(beside, "namespace") if namespace in ("", ".") else namespace


def _same_host(one: str, other: str) -> bool:
    """Return whether a host is of both; a star at the beginning is any."""
    return any(
        host == pattern or (pattern.startswith("*") and host.endswith(pattern[1:]))
        for host, pattern in ((one, other), (other, one))
    )


def _matches(rule: Manifest) -> list[Manifest]:
    return rule.get("matches") or [{}]


def _is_pattern(match: Manifest) -> bool:
    return bool(get(match, "method.type") == "RegularExpression")


def _specificity(match: Manifest, path: str) -> float:
    """Return how much of a path a match names, -1 if it does not match; a longer service wins first.

    How a pattern compares with names is each implementation's own affair, so it may win.
    """
    service, method = path.removeprefix("/").split("/")
    wanted = match.get("method") or {}
    if not (_same(wanted, "service", service) and _same(wanted, "method", method)):
        return -1
    if _is_pattern(match):
        return math.inf
    return len(path) * len(wanted.get("service", "")) + len(wanted.get("method", ""))


def _same(wanted: Manifest, key: str, value: str) -> bool:
    if key not in wanted:
        return True
    if wanted.get("type") == "RegularExpression":
        return re.fullmatch(wanted[key], value) is not None
    return bool(wanted[key] == value)


def _targets(route: Manifest, rule: Manifest) -> list[_Target]:
    own = (route["kind"], metadata(route, "name"))
    gateways = [name for _, name in find(route, "spec.parentRefs[].name")]
    return [(*own, rule.get("name")), (*own, None), *(("Gateway", name, None) for name in gateways)]


def _policies(manifests: Manifests, targets: list[_Target]) -> Iterator[Manifest]:
    """Yield the policies of the targets; one without mergeType replaces those after it."""
    for target in targets:
        for policy in manifests.of_kind("BackendTrafficPolicy"):
            for _, reference in find(policy, "spec.targetRefs[]"):
                if (reference["kind"], reference["name"], reference.get("sectionName")) == target:
                    yield policy
                    if "mergeType" not in policy["spec"]:
                        return
