import re
from pathlib import Path

import pytest
import yaml

from k8s.checks.kustomize import build, compose, copy_files
from k8s.checks.lint import RULES
from k8s.checks.schemas import NEWEST, OLDEST, validate
from k8s.checks.testing import config_map, overlay, texts

INJECTED = {"name": "injected", "image": "mesh.example.com/proxy:1"}

BY_INDEX = re.compile(r"[cC]ontainers[/.\[]\d")
"""A container addressed by its place, in a JSON patch, a replacement or a kubectl command."""


def names(folder):
    """Return the folders with a kustomization of a folder of k8s/."""
    return sorted(file.parent.name for file in Path("k8s", folder).glob("*/kustomization.yaml"))


def components_of(folder):
    """Return the names of the components that a kustomization has, with those that they have."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    paths = [folder / each for each in kustomization.get("components", ())]
    resources = [folder / each for each in kustomization.get("resources", ()) if (folder / each).is_dir()]
    return {path.name for path in paths}.union(*map(components_of, paths + resources))


OVERLAYS = names("overlays")
USED = set().union(*(components_of(Path("k8s/overlays", name)) for name in OVERLAYS))
UNUSED = [name for name in names("components") if name not in USED]


@pytest.fixture
def files(tmp_path):
    """Return a copy of k8s/ to render from."""
    return copy_files(tmp_path)


def test_every_overlay_is_rendered_from_here():
    """The tests below were given the overlays and the components."""
    assert {"dev", "istio", "prod", "staging"} <= {*OVERLAYS}
    assert {"postgres", "tls", "traefik"} <= USED


def is_core(manifest):
    """Return whether a kind is Kubernetes' own."""
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def problems(objects, version):
    """Return what a version of Kubernetes finds wrong."""
    return [problem for each in objects for problem in validate(each, version)]


@pytest.mark.parametrize("name", UNUSED)
def test_component_that_no_overlay_has(name, files):
    """It is rendered with production, passes all checks there, and is what Kubernetes knows."""
    rendered = compose(files, "overlays/prod", name)
    assert [text for rule in RULES for text in texts(rule, rendered)] == []
    core = [each for each in rendered.objects if is_core(each)]
    assert [str(each) for version in (OLDEST, NEWEST) for each in problems(core, version)] == []


def test_no_file_addresses_a_container_by_its_place():
    """Meshes put containers before ours: each patch and replacement names the one that it means."""
    found = [
        f"{file}: {match.group()}"
        for folder in ("base", "components", "overlays")
        for file in sorted(Path("k8s", folder).rglob("*"))
        if file.is_file()
        for match in BY_INDEX.finditer(file.read_text("utf-8"))
    ]
    assert found == []


def containers(manifests):
    """Return all containers by workload and name."""
    return {
        (pod.workload["kind"], container["name"]): container
        for pod in manifests.pods
        for _, container in pod.containers
    }


def inject(file):
    """Put a sidecar before the container of a workload."""
    workload = yaml.safe_load(file.read_text())
    workload["spec"]["template"]["spec"]["containers"].insert(0, INJECTED)
    file.write_text(yaml.safe_dump(workload))


@pytest.mark.parametrize("name", OVERLAYS)
def test_sidecar_before_the_server(name, files):
    """Every overlay sets on its own containers what it sets without one, and nothing on the sidecar."""
    before = containers(build(files, f"overlays/{name}"))
    inject(files / "base/deployment.yaml")
    inject(files / "base/migration-job.yaml")
    after = containers(build(files, f"overlays/{name}"))
    injected = [after.pop(key) for key in list(after) if key[1] == "injected"]
    assert injected
    assert all(each == INJECTED for each in injected)
    assert after == before


def test_no_replacement_is_written_twice():
    """Where the namespace goes is said once, whatever number of overlays have it."""
    files = [each for each in Path("k8s").glob("*/**/*.yaml") if each.parts[1] in ("components", "overlays")]
    assert sum(file.read_text().count("- spec.dnsNames.1\n") for file in files) == 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_have_the_configuration_of_base(name):
    """What is new in base/config.yaml is in every overlay: it is theirs, or a test compares what differs."""
    own = {"authentication"} & components_of(Path("k8s/overlays", name))
    source = Path("k8s/components/authentication" if own else "k8s/base") / "config.yaml"
    assert config_map(overlay(name))["data"]["config.yaml"] == source.read_text("utf-8")
