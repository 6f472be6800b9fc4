"""Pods are sent to nodes that the image is for, and to all of them."""

from pathlib import Path
from typing import Any

import pytest

from k8s.checks.rendered import OVERLAYS, load
from tools.image.image_files import Image

IMAGE = "user-service"
"""What the name of our image ends with, before its tag or digest."""

INDEX = Image(Path("services/user/image")).manifest()["manifests"]


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """Return the pods that run our image, by the kind and name of what makes them."""
    templates = {
        f"{item['kind']}/{item['metadata']['name']}": item["spec"]["template"]["spec"]
        for item in load(overlay)
        if item["kind"] in {"Deployment", "Job", "StatefulSet", "DaemonSet"}
    }
    return {name: pod for name, pod in templates.items() if any(map(is_ours, pod["containers"]))}


def is_ours(container: dict[str, Any]) -> bool:
    """Return whether a container runs our image."""
    name = container["image"].partition("@")[0].rpartition("/")[2].partition(":")[0]
    return name == IMAGE


def allowed(pod: dict[str, Any], label: str) -> list[set[str]]:
    """Return the values of a node's label that each term of a pod's affinity lists."""
    node = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [
        {
            value
            for each in term["matchExpressions"]
            if (each["key"], each["operator"]) == (label, "In")
            for value in each["values"]
        }
        for term in node["nodeSelectorTerms"]
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("field", ["os", "architecture"])
def test_affinity_is_what_the_index_has(overlay, field):
    """A platform that the index lacks would end in `exec format error`; one more in it would stay unused."""
    label = {"os": "kubernetes.io/os", "architecture": "kubernetes.io/arch"}[field]
    built = {manifest["platform"][field] for manifest in INDEX}
    found = pods(overlay)
    assert found
    for name, pod in found.items():
        assert allowed(pod, label) == [built], f"{overlay}: {name}"
