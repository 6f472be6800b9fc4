import json
import os
import shutil

import pytest
import yaml

from tools.kubernetes.deploy.testing import IMAGE, App, make_object


def test_a_first_deployment_makes_everything(app: App) -> None:
    """The image is pushed by its repository, the Job has run, and the pods are ready."""
    output = app.deploy()
    assert "+ Deployment/app" in output
    assert (app.folder / "pushed").read_text() == "--repository registry.example.com/app\n"
    assert app.get("job/migrate", ".status.succeeded") == "1"
    assert app.get("deployment/app", ".status.availableReplicas") == "1"
    assert "deploy_trial of" in app.get(
        "deployment/app", r".metadata.annotations.kubernetes\.io/change-cause"
    )


def test_fields_without_a_value_are_as_if_they_were_not_there(app: App) -> None:
    """`labels:` with nothing behind it is what a template leaves; a key of a ConfigMap is an empty text."""
    app.objects["Secret"] = make_object("v1", "Secret", "s", data=None)
    policy = {"podSelector": {"matchLabels": None}, "egress": [{}]}
    app.objects["NetworkPolicy"] = make_object("networking.k8s.io/v1", "NetworkPolicy", "shut", spec=policy)
    for kind in ("Secret", "NetworkPolicy"):
        app.objects[kind]["metadata"]["namespace"] = app.namespace
    app.objects["ConfigMap"]["data"] = {"empty": None}
    app.objects["Deployment"]["metadata"] |= {"labels": None, "annotations": None}
    app.template["metadata"]["annotations"] = None
    app.objects["Job"]["metadata"]["annotations"] = None
    pod = app.objects["Job"]["spec"]["template"]["spec"]
    pod |= {"initContainers": None, "imagePullSecrets": None, "volumes": None}
    pod["containers"][0]["envFrom"] = [{"secretRef": {"name": "s"}}]
    app.deploy()
    assert app.get("configmap/config-1", ".data") == '{"empty":""}'


def test_no_secret_is_shown(app: App) -> None:
    """--diff has all lines but those of Secrets, whether they are new or change."""
    app.objects["Secret"] = make_object("v1", "Secret", "secret", stringData={"key": "hunter2"})
    app.objects["Secret"]["metadata"]["namespace"] = app.namespace
    output = app.deploy("--diff")
    assert "image: registry.example.com/app" in output
    app.objects["Secret"]["stringData"]["key"] = "hunter3"
    output += app.deploy("--diff")
    assert "~ Secret/secret" in output
    assert "hunter" not in output
    assert "aHVudGVy" not in output  # its Base64


def test_the_migration_ends_before_the_servers_change(app: App) -> None:
    """A server never meets a schema that is older than it needs."""
    app.deploy()
    done = app.get("job/migrate", ".status.completionTime")
    created = app.get("deployment/app", ".metadata.creationTimestamp")
    assert done <= created


def test_nothing_changes_when_nothing_changed(app: App) -> None:
    """What is deployed twice is announced as no change, and no pod is replaced."""
    app.deploy()
    app.objects.pop("Job")
    app.deploy()
    pods = app.server_pods()
    assert "nothing changes" in app.deploy()
    assert app.server_pods() == pods


def test_a_status_that_changes_is_no_change(app: App) -> None:
    """Controllers write it whenever they like, also between the two times that kubectl reads an object."""
    app.deploy()
    program = app.folder / "diff"
    # As `diff -N -U99999 LIVE MERGED`; what is in LIVE was read first.
    change = 'sed -i "s/observedGeneration: .*/observedGeneration: 9/" "$3"/*Deployment*'
    program.write_text(f'#!/bin/sh\n{change}\nexec {shutil.which("diff")} "$@"\n')
    program.chmod(0o755)
    app.environment["PATH"] = f"{app.folder}:{os.environ['PATH']}"
    assert "Deployment/app" not in app.deploy("--dry-run", "--diff")
    app.template["metadata"]["annotations"]["key"] = "value"
    output = app.deploy("--dry-run", "--diff")
    assert "~ Deployment/app" in output
    assert "observedGeneration" not in output


def test_a_new_version_replaces_the_pods_and_prunes(app: App) -> None:
    """What the new version does not have is removed after the rollout, and others' objects stay."""
    app.deploy()
    app.running.kubectl("create", "configmap", "others", f"--namespace={app.namespace}")
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    app.container["image"] = IMAGE + 64 * "2"
    output = app.deploy("--diff")
    assert "~ Deployment/app" in output
    assert "- ConfigMap/config-1" in output
    assert f"+      - image: {IMAGE}{64 * '2'}" in output.replace("\t", " ")
    assert app.image() == "2"
    assert app.names("configmaps") >= {"config-2", "others"}
    assert "config-1" not in app.names("configmaps")


def test_a_dry_run_changes_nothing(app: App) -> None:
    """It says what would change; nothing is pushed or applied."""
    app.deploy()
    (app.folder / "pushed").unlink()
    app.container["image"] = IMAGE + 64 * "2"
    assert "~ Deployment/app" in app.deploy("--dry-run")
    assert not (app.folder / "pushed").exists()
    assert app.image() == "1"


SIDECAR = {"name": "a-proxy", "image": f"sidecars.example.com/proxy@sha256:{64 * '9'}"}


@pytest.mark.parametrize("place", ["containers", "initContainers"])
def test_a_sidecar_before_ours_is_left_alone(app: App, place: str) -> None:
    """The push goes to the repository of the image that was built, wherever its container is."""
    sidecar = SIDECAR if place == "containers" else SIDECAR | {"restartPolicy": "Always"}
    app.template["spec"].setdefault(place, []).insert(0, sidecar)
    app.deploy()
    assert (app.folder / "pushed").read_text() == "--repository registry.example.com/app\n"
    app.container["image"] = IMAGE + 64 * "2"
    app.deploy()
    assert app.image() == "2"


def test_a_kind_that_the_cluster_misses_is_refused(app: App) -> None:
    """Before anything is applied, the error names what has to be installed."""
    app.objects["Certificate"] = make_object("cert-manager.io/v1", "Certificate", "app")
    assert "does not know Certificate (cert-manager.io/v1)" in app.deploy(code=3)
    assert not app.running.kubectl("get", "namespace", app.namespace, "--ignore-not-found")


def test_replicas_are_left_to_the_autoscaler(app: App) -> None:
    """A field that is not rendered keeps what others made of it."""
    app.deploy()
    app.running.kubectl("scale", "deployment/app", "--replicas=3", f"--namespace={app.namespace}")
    app.container["image"] = IMAGE + 64 * "2"
    app.deploy()
    assert app.get("deployment/app", ".spec.replicas") == "3"


def test_what_was_edited_by_hand_is_put_right(app: App) -> None:
    """What is rendered holds over `kubectl edit`."""
    app.deploy()
    patch = json.dumps({"data": {"key": "by hand"}})
    app.running.kubectl("patch", "configmap/config-1", f"--patch={patch}", f"--namespace={app.namespace}")
    assert "~ ConfigMap/config-1" in app.deploy()
    assert app.get("configmap/config-1", ".data.key") == "value"


def test_volumes_are_kept(app: App) -> None:
    """A claim that is no longer rendered stays, and so it does when all else is deleted."""
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    app.objects["PersistentVolumeClaim"] = make_object("v1", "PersistentVolumeClaim", "data", spec=claim)
    app.objects["PersistentVolumeClaim"]["metadata"]["namespace"] = app.namespace
    app.deploy()
    del app.objects["PersistentVolumeClaim"]
    app.deploy()
    app.run("delete", "--yes")
    assert app.get("persistentvolumeclaim/data", ".metadata.deletionTimestamp") == ""
    assert app.names("persistentvolumeclaims") == {"data"}


def test_a_diff_of_ones_own_is_not_called(app: App) -> None:
    """KUBECTL_EXTERNAL_DIFF may print anything, or nothing, and changes are told all the same."""
    app.deploy()
    app.environment["KUBECTL_EXTERNAL_DIFF"] = "true"
    app.objects["ConfigMap"]["data"]["key"] = "new"
    assert "~ ConfigMap/config-1" in app.deploy("--dry-run")


def test_a_version_that_is_not_preferred_is_taken(app: App) -> None:
    """The cluster knows it, and prefers another."""
    spec = {
        "maxReplicas": 2,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"},
    }
    app.objects["Autoscaler"] = make_object("autoscaling/v1", "HorizontalPodAutoscaler", "app", spec=spec)
    app.objects["Autoscaler"]["metadata"]["namespace"] = app.namespace
    app.deploy()
    assert app.names("horizontalpodautoscalers") == {"app"}


def test_a_migration_ends_before_the_next_begins(app: App) -> None:
    """The Job is deleted with its pods, and only then made anew."""
    app.deploy()
    (pod,) = (name for name in app.names("pods") if name.startswith("migrate"))

    where = f"--namespace={app.namespace}"

    def hold(finalizers: list[str]) -> None:
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        app.running.kubectl("patch", "pod", pod, "--type=merge", f"--patch={patch}", where)

    hold(["example.com/held"])
    assert "Job/migrate: deleted at" in app.deploy("--timeout=1s", code=1)
    process = app.start_until("migrating")
    deleted = "--for=jsonpath={.metadata.deletionTimestamp}"
    app.running.kubectl("wait", f"pod/{pod}", deleted, "--timeout=30s", where)
    assert {name for name in app.names("pods") if name.startswith("migrate")} == {pod}
    assert app.get("job/migrate", ".metadata.deletionTimestamp")
    hold([])
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output


def test_delete_keeps_the_namespace_and_what_others_made(app: App) -> None:
    """What was deployed goes, with its pods; with --data all goes."""
    app.deploy()
    app.running.kubectl("create", "configmap", "others", f"--namespace={app.namespace}")
    output = app.run("delete", "--yes")
    assert "- Deployment/app" in output
    assert app.names("deployments") == set()
    assert "others" in app.names("configmaps")
    app.run("delete", "--yes", "--data")
    assert not app.running.kubectl("get", "namespace", app.namespace, "--ignore-not-found")


def test_a_namespace_of_others_is_not_deleted(app: App) -> None:
    """Nobody loses a namespace that the overlay was only put into."""
    app.running.kubectl("create", "namespace", app.namespace)
    del app.objects["Namespace"]
    app.deploy()
    assert "that was made by deploying app" in app.run("delete", "--yes", "--data", code=3)
    assert app.get("deployment/app", ".status.availableReplicas") == "1"


def test_render_writes_the_objects_into_a_folder(app: App) -> None:
    """GitOps tools take the folder as it is; a file of the last time is replaced."""
    for _ in range(2):
        app.run("render", str(app.folder / "out"))
    [file] = (app.folder / "out").iterdir()
    assert file.name == "trial.yaml"
    assert list(yaml.safe_load_all(file.read_text())) == list(app.objects.values())
