"""The objects of a rendered overlay."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

type Object = dict[str, Any]

MANAGER = "grpc-on-kubernetes"
"""The owner of the fields that are rendered."""

SET_LABEL = "grpc-on-kubernetes/deployed-as"
"""On every object that is deployed; what has it and is no longer rendered is pruned."""

_AFTER_ROLLOUT = "grpc-on-kubernetes/after-rollout"
"""The annotation of a Job that runs once the new pods serve; its failure brings those before back."""

_CHANGE_CAUSE = "kubernetes.io/change-cause"
"""What `kubectl rollout history` shows of a revision."""

_BUILT_IN = re.compile(r"(v1|(apps|batch|policy|autoscaling)/.*|[a-z.]+\.k8s\.io/.*)$")
"""The apiVersion of kinds that are no custom ones."""

_TEXTS = {"data", "stringData"}
"""Fields in which a key without a value is an empty text, and not a field that is left out."""


@dataclass(frozen=True)
class Manifests:
    """The objects of an overlay, in the order in which they are applied."""

    objects: list[Object]

    @classmethod
    def read(cls, file: Path) -> Manifests:
        """Read what `kustomize build` printed."""
        items = yaml.load_all(file.read_text(), yaml.CSafeLoader)
        return cls([_without_nulls(item) for item in items if item])

    @property
    def namespace(self) -> str:
        """Where the Deployments are, and with them all else."""
        return str(self.of_kind("Deployment")[0]["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """The name of the first Deployment, by which the whole is known in the cluster."""
        return str(self.of_kind("Deployment")[0]["metadata"]["name"])

    def of_kind(self, *kinds: str) -> list[Object]:
        """Return the objects of these kinds."""
        return [item for item in self.objects if item["kind"] in kinds]

    def jobs(self, *, after_rollout: bool = False) -> list[Object]:
        """Return the Jobs that run before the servers change, or those that try them out afterwards."""
        return [item for item in self.of_kind("Job") if _is_after_rollout(item) == after_rollout]

    def images(self) -> Iterator[tuple[str, str]]:
        """Yield (object, image) of every container, of whatever kind the object is."""
        for item in self.objects:
            for container in _containers(item):
                if "image" in container:
                    yield name_of(item), container["image"]

    def without_image(self) -> Iterator[tuple[str, str]]:
        """Yield (object, container) of the pods' containers that have no image.

        A custom object's may be there to be merged into others.
        """
        for item in self.objects:
            for container in _containers(item) if is_built_in(item) else ():
                if "image" not in container:
                    yield name_of(item), str(container.get("name"))

    def marked(self, cause: str) -> Manifests:
        """Return the same objects with the label, and with the cause of the change on Deployments."""
        return Manifests([_marked(item, self.name, cause) for item in self.objects])


def to_yaml(objects: list[Object]) -> str:
    """Return objects as kubectl reads them."""
    return yaml.dump_all(objects, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)


def name_of(item: Object) -> str:
    """Return what people call an object: `Deployment/user-service`."""
    return f"{item['kind']}/{item['metadata']['name']}"


def with_pods_of(deployment: Object, replica_set: Object) -> Object:
    """Return a Deployment with the pods of one of its ReplicaSets, and what caused them."""
    pods = replica_set["spec"]["template"]
    labels = {key: text for key, text in pods["metadata"]["labels"].items() if key != "pod-template-hash"}
    template = pods | {"metadata": pods["metadata"] | {"labels": labels}}
    annotations = deployment["metadata"].get("annotations", {}) | {
        _CHANGE_CAUSE: replica_set["metadata"]["annotations"].get(_CHANGE_CAUSE, "unknown")
    }
    return deployment | {
        "metadata": deployment["metadata"] | {"annotations": annotations},
        "spec": deployment["spec"] | {"template": template},
    }


def _without_nulls(item: Object) -> Object:
    """Return an object without the fields that have no value, which are as if they were not there.

    A custom kind may take them for something else, but for the metadata.
    """
    if is_built_in(item):
        return dict(_pruned(item))
    return item | {"metadata": _pruned(item["metadata"])}


def _pruned(node: Any) -> Any:
    if isinstance(node, list):
        return [_pruned(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: value if key in _TEXTS else _pruned(value) for key, value in node.items() if value is not None
    }


def is_built_in(item: Object) -> bool:
    """Return whether an object is of a kind that every cluster has."""
    return bool(_BUILT_IN.match(item.get("apiVersion", "")))


def _is_after_rollout(job: Object) -> bool:
    return bool(job["metadata"].get("annotations", {}).get(_AFTER_ROLLOUT) == "true")


def _containers(node: Any) -> Iterator[Object]:
    if isinstance(node, list):
        for each in node:
            yield from _containers(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers") and isinstance(value, list):
                yield from (each for each in value if isinstance(each, dict))
            else:
                yield from _containers(value)


def _marked(item: Object, deployed_as: str, cause: str) -> Object:
    metadata = dict(item["metadata"])
    metadata["labels"] = metadata.get("labels", {}) | {SET_LABEL: deployed_as}
    if item["kind"] == "Deployment":
        metadata["annotations"] = metadata.get("annotations", {}) | {_CHANGE_CAUSE: cause}
    return item | {"metadata": metadata}
