"""Pods come to nodes that can run them."""

from collections.abc import Iterator
from typing import Any

from k8s.checks.manifests import Manifest, Manifests, Problem, find, get
from k8s.checks.servers import pods_of_programs

PLATFORM = {"kubernetes.io/os": {"linux"}, "kubernetes.io/arch": {"amd64", "arm64"}}
"""Labels of nodes, and their values where our images run."""

_AFFINITY = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"


def run_where_the_image_does(manifests: Manifests) -> Iterator[Problem]:
    """No pod of ours waits on a node of another platform, with `exec format error` or no image at all."""
    for pod in pods_of_programs(manifests):
        for label, able in PLATFORM.items():
            if any(not _allowed(pod.spec, term, label, able) for term in _terms(pod.spec)):
                what = f"nodes whose {label} is not {' or '.join(sorted(able))} are allowed, too"
                yield pod.problem(f"spec.{_AFFINITY}", what, f"ask for {label} in each term")


def _terms(spec: Manifest) -> list[Manifest]:
    """Return the terms of which a node must fulfil one; an empty one where there are none."""
    return get(spec, _AFFINITY) or [{}]


def _allowed(spec: Manifest, term: Manifest, label: str, able: set[str]) -> bool:
    """Return whether a node of a term has one of the values of a label that are good."""
    chosen: Any = (spec.get("nodeSelector") or {}).get(label)
    if chosen in able:
        return True
    expressions = [each for _, each in find(term, "matchExpressions[]")]
    return any(
        each["key"] == label and each["operator"] == "In" and able.issuperset(each["values"])
        for each in expressions
    )
