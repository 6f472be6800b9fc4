"""Every overlay in a real cluster, whose API server knows the custom kinds by name only."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.cluster import cluster
from tools.cluster.testing import running_or_skipped

COMMAND = Path("tools/kubernetes/deploy/cli").absolute()
KUBECTL = Path(os.environ.get("KUBECTL", "kubectl")).absolute()

OVERLAYS = {
    file.name.removesuffix("_with_image.yaml"): [
        item for item in yaml.safe_load_all(file.read_text()) if item
    ]
    for file in sorted(Path("k8s").glob("*_with_image.yaml"))
}


@pytest.fixture(scope="module")
def running() -> Iterator[cluster.Cluster]:
    """Return a cluster with the kinds that overlays use."""
    with running_or_skipped() as running:
        rows = running.kubectl("api-resources", "--no-headers").splitlines()
        known = {(version, kind) for version, _, kind in (row.split()[-3:] for row in rows)}
        used = {(item["apiVersion"], item["kind"]) for items in OVERLAYS.values() for item in items}
        custom = [definition(*each) for each in sorted(used - known)]
        running.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(custom))
        running.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
        yield running


def definition(api_version: str, kind: str) -> dict[str, Any]:
    """Return a definition that takes any field: the schemas are tested elsewhere."""
    group, version = api_version.split("/")
    plural = re.sub("(?<![aeiou])y$", "ie", kind.lower()) + "s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }


def deploy(running: cluster.Cluster, overlay: str, folder: Path, *arguments: str) -> str:
    """Deploy an overlay and return what was printed."""
    settings = folder / "deploy.yaml"
    settings.write_text("{}")
    command = [COMMAND, f"--overlay={overlay}", f"--manifests=k8s/{overlay}_with_image.yaml"]
    command += [f"--settings={settings}", f"--kubectl={KUBECTL}", "--push=/nonexistent", *arguments]
    environment = os.environ | {"KUBECONFIG": str(running.kubeconfig)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_overlay_is_rolled_out(running: cluster.Cluster, tmp_path: Path) -> None:
    """Each is accepted, also by the restricted standard, and replaces another one in its namespace."""
    for name, objects in OVERLAYS.items():
        deploy(running, name, tmp_path, "deploy", "--yes", "--no-push")
        assert live(running, objects[0]) == {
            (item["kind"], item["metadata"]["name"]) for item in objects if item["kind"] != "Namespace"
        }, name
        again = deploy(running, name, tmp_path, "deploy", "--dry-run").splitlines()
        assert [line for line in again if not line.startswith("  * Job/")] in ([], ["nothing changes"]), name


def live(running: cluster.Cluster, namespace: dict[str, Any]) -> set[tuple[str, str]]:
    """Return what the namespace has of ours."""
    kinds = running.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "--output=name").split()
    where = [f"--namespace={namespace['metadata']['name']}", "--selector=grpc-on-kubernetes/deployed-as"]
    found = json.loads(running.kubectl("get", ",".join(kinds), *where, "--output=json"))["items"]
    return {
        (item["kind"], item["metadata"]["name"])
        for item in found
        if "ownerReferences" not in item["metadata"] and item["kind"] != "Endpoints"
    }


def test_there_are_overlays() -> None:
    """The test above was given some."""
    assert {"dev", "prod"} <= OVERLAYS.keys()
