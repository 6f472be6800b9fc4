"""What Argo CD and Flux do with the overlays, on a real API server, without their controllers."""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
import yaml

from k8s.checks import references
from k8s.checks.kustomize import compose, copy_files
from k8s.checks.manifests import Manifests, annotations, get, title
from tools.cluster import cluster
from tools.cluster.testing import running_or_skipped
from tools.kubernetes.labels import matches

HOOK = "argocd.argoproj.io/hook"
POLICY = "argocd.argoproj.io/hook-delete-policy"
WAVE = "argocd.argoproj.io/sync-wave"
FORCE = "kustomize.toolkit.fluxcd.io/force"

JOB = "Job/user-service-migrate"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a copy of k8s/ to render from."""
    return copy_files(tmp_path_factory.mktemp("k8s"))


@pytest.fixture(scope="module")
def running() -> Iterator[cluster.Cluster]:
    """Return a cluster; what is deployed to it has no custom kinds."""
    with running_or_skipped() as running:
        yield running


def wave(manifest):
    """Return when Argo CD applies an object: phases one after the other, and the waves of each."""
    phases = ["PreSync", "Sync", "PostSync"]
    return phases.index(annotations(manifest).get(HOOK, "Sync")), int(annotations(manifest).get(WAVE, "0"))


def needed(manifests):
    """Yield what a migration's pod needs to start and to reach the database, and what is there before all."""
    [job] = [pod for pod in manifests.pods if title(pod.workload) == JOB]
    names = {f"{use.kind}/{use.name}" for use in references.uses(manifests) if use.manifest is job.workload}
    for each in manifests.objects:
        policy = each["kind"] == "NetworkPolicy" and matches(get(each, "spec.podSelector") or {}, job.labels)
        if policy or title(each) in names or each["kind"] in ("ExternalSecret", "Namespace", "StatefulSet"):
            yield each


@pytest.mark.parametrize(
    ("resource", "components"),
    [
        ("overlays/prod", ["external-secret", "node-local-dns"]),
        ("overlays/staging", []),
        ("base", ["postgres-trial"]),
    ],
)
def test_migration_comes_after_what_it_needs(resource, components, files):
    """Nothing that the migration's pod needs is applied with it or later, and every server comes later."""
    manifests = compose(files, resource, *components, "gitops-argocd")
    [job] = [each for each in manifests.objects if title(each) == JOB]
    before = list(needed(manifests))
    assert {"ConfigMap", "Namespace", "NetworkPolicy", "ServiceAccount"} <= {each["kind"] for each in before}
    assert [title(each) for each in before if wave(each) >= wave(job)] == []
    after = manifests.of_kind("Deployment", "HorizontalPodAutoscaler", "IngressRoute", "PodMonitor")
    assert [title(each) for each in after if wave(each) <= wave(job)] == []


def released(manifests: Manifests, digest: str) -> list[dict[str, Any]]:
    """Return the objects with an image, as render_NAME writes them."""
    text = re.sub("sha256:0{64}", f"sha256:{digest * 64}", yaml.safe_dump_all(manifests.objects))
    return list(yaml.safe_load_all(text))


def apply(running: cluster.Cluster, objects: list[Any], manager: str) -> None:
    """Apply objects as both do, server-side and over the fields of others."""
    command = ["apply", "--server-side", "--force-conflicts", f"--field-manager={manager}", "--filename=-"]
    running.kubectl(*command, stdin=yaml.safe_dump_all(objects))


def get_job(running: cluster.Cluster) -> Any:
    """Return the migration as it is in the cluster."""
    return json.loads(running.kubectl("get", "job", "user-service-migrate", *WHERE, "--output=json"))


WHERE = ("--namespace=user-service",)


def image_of(workload: Any) -> str:
    """Return the digest's first digit of the only container."""
    [container] = workload["spec"]["template"]["spec"]["containers"]
    return str(container["image"]).partition("@sha256:")[2][:1]


def synchronize(running: cluster.Cluster, objects: list[Any]) -> None:
    """Do what Argo CD does: wave by wave, each healthy before the next, and hooks made anew."""
    for _, members in groupby(sorted(objects, key=wave), wave):
        together = list(members)
        for each in together:
            if annotations(each).get(POLICY) == "BeforeHookCreation":
                running.kubectl("delete", title(each), *WHERE, "--ignore-not-found")
        apply(running, together, "argocd-controller")
        for each in together:
            if each["kind"] == "Job":
                running.kubectl("wait", "--for=condition=complete", "--timeout=60s", title(each), *WHERE)


def test_argocd_synchronizes_twice(running, files):
    """Each version has a migration of its own, which has ended before the servers get the version."""
    manifests = compose(files, "base", "postgres-trial", "gitops-argocd")
    jobs = []
    for digest in "12":
        synchronize(running, released(manifests, digest))
        jobs.append(get_job(running))
        deployment = json.loads(running.kubectl("get", "deployment", "user-service", *WHERE, "--output=json"))
        assert image_of(deployment) == image_of(jobs[-1]) == digest
    assert jobs[0]["metadata"]["uid"] != jobs[1]["metadata"]["uid"]
    synchronize(running, released(manifests, "2"))
    assert image_of(get_job(running)) == "2", "the same version once more"
    running.kubectl("delete", "namespace", "user-service")


def reconcile(running: cluster.Cluster, objects: list[Any]) -> None:
    """Do what Flux does: namespaces first, then all else, and what can't be changed anew if it may be."""
    apply(running, [each for each in objects if each["kind"] == "Namespace"], "kustomize-controller")
    for each in objects:
        try:
            apply(running, [each], "kustomize-controller")
        except cluster.ClusterError as refused:
            assert "field is immutable" in str(refused)
            assert annotations(each).get(FORCE) == "enabled", refused
            running.kubectl("delete", title(each), *WHERE)
            apply(running, [each], "kustomize-controller")


def test_flux_reconciles_twice(running, files):
    """Another image makes the migration anew; the same one leaves it alone, and no clock takes it away."""
    manifests = compose(files, "base", "postgres-trial", "gitops-flux")
    reconcile(running, released(manifests, "1"))
    first = get_job(running)
    reconcile(running, released(manifests, "1"))
    assert get_job(running)["metadata"]["uid"] == first["metadata"]["uid"]
    reconcile(running, released(manifests, "2"))
    second = get_job(running)
    assert (image_of(first), image_of(second)) == ("1", "2")
    assert "ttlSecondsAfterFinished" not in second["spec"], "it would run again at each reconciliation"
    running.kubectl("delete", "namespace", "user-service")
