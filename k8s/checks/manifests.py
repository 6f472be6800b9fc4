"""The objects of a rendered overlay, found by kind, name and label, and what is wrong with one."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tools.kubernetes.labels import matches

type Manifest = Mapping[str, Any]

_TEMPLATES = {
    "Pod": "",
    "CronJob": "spec.jobTemplate.spec.template",
    **dict.fromkeys(("DaemonSet", "Deployment", "Job", "ReplicaSet", "StatefulSet"), "spec.template"),
}
"""Where each kind has its pod; a Pod is its own."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a manifest; as text one line for the person who mends it."""

    manifest: Manifest
    field: str
    what: str
    """What is wrong with the field."""
    fix: str
    """What would be right."""

    def __str__(self) -> str:
        return f"{title(self.manifest)}: {self.field}: {self.what}; {self.fix}"


@dataclass(frozen=True)
class External:
    """An object that no overlay makes: a person or the cluster does."""

    kind: str
    name: str
    why: str
    """Who makes it, and how."""
    keys: Sequence[str] = ()
    """What a ConfigMap or Secret has; of an issuer, what it puts into Secrets, if not all three files."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of a Pod, by which policies select it."""


@dataclass(frozen=True)
class Pod:
    """The pods that a workload makes."""

    workload: Manifest
    template: Manifest
    field: str
    """Where the template is, with a dot after it: `spec.template.`."""

    @property
    def labels(self) -> Mapping[str, str]:
        """The pods' labels."""
        return get(self.template, "metadata.labels") or {}

    @property
    def spec(self) -> Manifest:
        """The pods' spec."""
        return self.template.get("spec") or {}

    @property
    def containers(self) -> list[tuple[str, Manifest]]:
        """All containers, those that run first included, each with its field in the workload."""
        kinds = ("initContainers", "containers")
        return [found for kind in kinds for found in self.find(f"spec.{kind}[]")]

    def find(self, path: str) -> Iterator[tuple[str, Any]]:
        """Yield what is at `path` of the template, as the function of this name does for a manifest."""
        return ((self.field + field, value) for field, value in find(self.template, path))

    def problem(self, field: str, what: str, fix: str) -> Problem:
        """Return a problem of a field of the template."""
        return Problem(self.workload, self.field + field, what, fix)


class Manifests:
    """All objects that are applied together, and those that are there already."""

    def __init__(self, objects: Iterable[Manifest], external: Iterable[External] = ()) -> None:
        self.objects = list(objects)
        self.external = list(external)

    def of_kind(self, *kinds: str) -> list[Manifest]:
        """Return the objects of these kinds, whatever their API group."""
        return [manifest for manifest in self.objects if manifest.get("kind") in kinds]

    def named(self, kind: str, name: str, namespace: str) -> Manifest | None:
        """Return the object, or None if there is none; of a kind without namespaces in whichever."""
        for manifest in self.of_kind(kind):
            if metadata(manifest, "name") == name and metadata(manifest, "namespace") in ("", namespace):
                return manifest
        return None

    def exists(self, kind: str, name: str, namespace: str) -> bool:
        """Return whether the object is here or declared external."""
        declared = any((each.kind, each.name) == (kind, name) for each in self.external)
        return declared or self.named(kind, name, namespace) is not None

    @cached_property
    def pods(self) -> list[Pod]:
        """The pods of all workloads."""
        return [
            Pod(workload, get(workload, path) or {} if path else workload, path and path + ".")
            for kind, path in _TEMPLATES.items()
            for workload in self.of_kind(kind)
        ]

    def select(self, selector: Manifest, namespace: str) -> list[Pod]:
        """Return the pods that a label selector matches."""
        return [
            pod
            for pod in self.pods
            if metadata(pod.workload, "namespace") == namespace and matches(selector, pod.labels)
        ]

    def behind(self, service: Manifest) -> list[Pod]:
        """Return the pods that a Service sends calls to."""
        labels = get(service, "spec.selector")
        return self.select({"matchLabels": labels}, metadata(service, "namespace")) if labels else []

    def services_of(self, pod: Pod) -> list[Manifest]:
        """Return the Services that send calls to a pod."""
        return [service for service in self.of_kind("Service") if pod in self.behind(service)]


def title(manifest: Manifest) -> str:
    """Return `Kind/name`."""
    return f"{manifest.get('kind')}/{metadata(manifest, 'name')}"


def metadata(manifest: Manifest, key: str) -> str:
    """Return `name` or `namespace`, empty if there is none."""
    found = manifest.get("metadata")
    return str(found.get(key, "")) if isinstance(found, Mapping) else ""


def annotations(manifest: Manifest) -> Mapping[str, str]:
    """Return the annotations."""
    return (manifest.get("metadata") or {}).get("annotations") or {}


def content(manifest: Manifest) -> dict[str, str]:
    """Return what a ConfigMap or Secret holds, decoded."""
    data = manifest.get("data") or {}
    if manifest["kind"] == "ConfigMap":
        return {**data, **(manifest.get("binaryData") or {})}
    decoded = {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
    return {**decoded, **(manifest.get("stringData") or {})}


def get(manifest: Manifest, path: str) -> Any:
    """Return what is at `spec.template`, None if nothing is."""
    return next((value for _, value in find(manifest, path)), None)


def find(manifest: Manifest, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each value at a path like `spec.rules[].http.paths[].backend`, with its field.

    `[]` goes through a list; in the field is the item's name, or its number if it has none.
    """
    yield from _find(manifest, path.split("."), "")


def _find(value: Any, steps: Sequence[str], field: str) -> Iterator[tuple[str, Any]]:
    if not steps:
        yield field, value
        return
    step = steps[0].removesuffix("[]")
    if not isinstance(value, Mapping) or value.get(step) is None:
        return
    field = f"{field}.{step}" if field else step
    value = value[step]
    if step == steps[0]:
        yield from _find(value, steps[1:], field)
        return
    for number, item in enumerate(value):
        name = item.get("name", number) if isinstance(item, Mapping) else number
        yield from _find(item, steps[1:], f"{field}[{name}]")
