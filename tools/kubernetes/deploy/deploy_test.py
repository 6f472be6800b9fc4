import copy
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.cluster import cluster

COMMAND = Path("tools/kubernetes/deploy/cli").absolute()
KUBECTL = Path(os.environ.get("KUBECTL", "kubectl")).absolute()

FAILS = "pod-start.stage.kwok.x-k8s.io/fails"
DELAY = "pod-start.stage.kwok.x-k8s.io/delay"
"""What simulated pods do; see tools/cluster/pods.yaml."""

IMAGE = "registry.example.com/app@sha256:"

_numbers = itertools.count()

type Objects = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def running() -> Iterator[cluster.Cluster]:
    """Return a cluster that all tests share, each in a namespace of its own."""
    try:
        cluster.programs()
    except cluster.MissingProgramError as missing:
        pytest.skip(str(missing))
    with cluster.running() as running:
        yield running


class App:
    """An overlay as Bazel renders one, in a namespace of its own."""

    def __init__(self, running: cluster.Cluster, folder: Path, namespace: str) -> None:
        self.running = running
        self.folder = folder
        self.kubectl = KUBECTL
        self.environment = {"KUBECONFIG": str(running.kubeconfig)}
        self.namespace = namespace
        (folder / "deploy.yaml").write_text("{}")
        self.push = folder / "push"
        self.push.write_text(f'#!/bin/sh\necho "$@" >>{folder}/pushed\n')
        self.push.chmod(0o755)
        self.objects = _objects(namespace)

    @property
    def template(self) -> dict[str, Any]:
        """The pods of the Deployment."""
        template: dict[str, Any] = self.objects["Deployment"]["spec"]["template"]
        return template

    def wrap_kubectl(self, case: str) -> None:
        """Have kubectl do something else where its arguments are as in a case of the shell."""
        self.kubectl = self.folder / "kubectl"
        self.kubectl.write_text(f'#!/bin/sh\ncase "$*" in\n{case}\n*) exec {KUBECTL} "$@" ;;\nesac\n')
        self.kubectl.chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command on what the objects are now."""
        rendered = self.folder / "rendered.yaml"
        rendered.write_text(yaml.safe_dump_all(self.objects.values()))
        files = {"manifests": rendered, "settings": self.folder / "deploy.yaml", "push": self.push}
        options = [f"--{name}={file}" for name, file in files.items()]
        return subprocess.Popen(
            [COMMAND, "--overlay=trial", f"--kubectl={self.kubectl}", *options, *arguments],
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end, expect its exit code, and return what it printed."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == code, output
        return output

    def start_until(self, line: str, *arguments: str) -> subprocess.Popen[str]:
        """Start to deploy, and return when a line begins so."""
        process = self.start("deploy", "--yes", *arguments)
        assert process.stdout
        assert any(each.startswith(line) for each in process.stdout)
        return process

    def deploy(self, *arguments: str, code: int = 0) -> str:
        """Deploy without questions."""
        return self.run("deploy", "--yes", *arguments, code=code)

    def names(self, kind: str) -> set[str]:
        """Return the names of the namespace's objects of a kind."""
        listed = self.running.kubectl("get", kind, f"--namespace={self.namespace}", "--output=name")
        return {name.rpartition("/")[2] for name in listed.split()}

    def get(self, name: str, path: str) -> str:
        """Return a field of an object."""
        where = f"--namespace={self.namespace}"
        return self.running.kubectl("get", name, where, f"--output=jsonpath={{{path}}}")

    def image(self) -> str:
        """Return the last part of the image that the Deployment has."""
        return self.get("deployment/app", ".spec.template.spec.containers[0].image")[-1]


@pytest.fixture
def app(running: cluster.Cluster, tmp_path: Path) -> App:
    """Return an overlay that is not deployed yet."""
    return App(running, tmp_path, f"app-{next(_numbers)}")


def _objects(namespace: str) -> Objects:
    pod: dict[str, Any] = {
        "metadata": {"labels": {"app": "app"}, "annotations": {}},
        "spec": {"containers": [{"name": "app", "image": IMAGE + 64 * "1"}]},
    }
    job_pod = copy.deepcopy(pod)
    job_pod["metadata"]["labels"] = {"app": "migrate"}
    job_pod["spec"]["restartPolicy"] = "Never"
    objects = [
        _object("v1", "Namespace", namespace),
        _object("v1", "ConfigMap", "config-1", data={"key": "value"}),
        _object("v1", "Service", "app", spec={"selector": {"app": "app"}, "ports": [{"port": 1}]}),
        _object("batch/v1", "Job", "migrate", spec={"template": job_pod, "backoffLimit": 0}),
        _object(
            "apps/v1",
            "Deployment",
            "app",
            spec={"selector": {"matchLabels": {"app": "app"}}, "template": pod},
        ),
    ]
    for item in objects[1:]:
        item["metadata"]["namespace"] = namespace
    return {item["kind"]: item for item in objects}


def _object(version: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **more}


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


def test_no_secret_is_shown(app: App) -> None:
    """--diff has all lines but those of Secrets, whether they are new or change."""
    app.objects["Secret"] = _object("v1", "Secret", "secret", stringData={"key": "hunter2"})
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
    pods = app.names("pods")
    assert "nothing changes" in app.deploy()
    assert app.names("pods") == pods


def test_a_new_version_replaces_the_pods_and_prunes(app: App) -> None:
    """What the new version does not have is removed after the rollout, and others' objects stay."""
    app.deploy()
    app.running.kubectl("create", "configmap", "others", f"--namespace={app.namespace}")
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    output = app.deploy("--diff")
    assert "~ Deployment/app" in output
    assert "- ConfigMap/config-1" in output
    assert f"+      - image: {IMAGE}{64 * '2'}" in output.replace("\t", " ")
    assert app.image() == "2"
    assert app.names("configmaps") >= {"config-2", "others"}
    assert "config-1" not in app.names("configmaps")


def test_a_version_that_does_not_come_up_is_explained_and_rolled_back(app: App) -> None:
    """The pod's reason and warnings are shown, and what the old version needs is still there."""
    app.deploy()
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][FAILS] = "ImagePullBackOff"
    output = app.deploy("--timeout=3s", code=1)
    assert "ImagePullBackOff" in output
    assert "Failed: simulated" in output
    assert "was rolled back" in output
    assert app.image() == "1"
    assert app.get("deployment/app", ".status.availableReplicas") == "1"
    assert "config-1" in app.names("configmaps")


def test_a_failed_version_is_left_when_told_so(app: App) -> None:
    """--no-rollback leaves the pods to be looked at; the next deployment repairs."""
    app.deploy()
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    assert "left as it is" in app.deploy("--timeout=3s", "--no-rollback", code=1)
    assert app.image() == "2"
    del app.template["metadata"]["annotations"][FAILS]
    app.deploy()
    assert app.get("deployment/app", ".status.availableReplicas") == "1"


def test_a_failed_migration_keeps_the_old_servers(app: App) -> None:
    """Why it failed is shown, and no pod is touched."""
    app.deploy()
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    app.objects["Job"]["spec"]["template"]["metadata"]["annotations"][FAILS] = "Error"
    output = app.deploy(code=1)
    assert "Job/migrate failed" in output
    assert "exit" in output.lower() or "Error 1" in output
    assert app.image() == "1"


def test_a_dry_run_changes_nothing(app: App) -> None:
    """It says what would change; nothing is pushed or applied."""
    app.deploy()
    (app.folder / "pushed").unlink()
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    assert "~ Deployment/app" in app.deploy("--dry-run")
    assert not (app.folder / "pushed").exists()
    assert app.image() == "1"


def test_nobody_answers_for_a_script(app: App) -> None:
    """Without a terminal and --yes nothing is deployed."""
    assert "pass --yes" in app.run("deploy", code=3)
    assert not app.running.kubectl("get", "namespace", app.namespace, "--ignore-not-found")


def test_a_kind_that_the_cluster_misses_is_refused(app: App) -> None:
    """Before anything is applied, the error names what has to be installed."""
    app.objects["Certificate"] = _object("cert-manager.io/v1", "Certificate", "app")
    assert "does not know Certificate (cert-manager.io/v1)" in app.deploy(code=3)
    assert not app.running.kubectl("get", "namespace", app.namespace, "--ignore-not-found")


def test_replicas_are_left_to_the_autoscaler(app: App) -> None:
    """A field that is not rendered keeps what others made of it."""
    app.deploy()
    app.running.kubectl("scale", "deployment/app", "--replicas=3", f"--namespace={app.namespace}")
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    app.deploy()
    assert app.get("deployment/app", ".spec.replicas") == "3"


def test_what_was_edited_by_hand_is_put_right(app: App) -> None:
    """What is rendered holds over `kubectl edit`."""
    app.deploy()
    patch = json.dumps({"data": {"key": "by hand"}})
    app.running.kubectl("patch", "configmap/config-1", f"--patch={patch}", f"--namespace={app.namespace}")
    assert "~ ConfigMap/config-1" in app.deploy()
    assert app.get("configmap/config-1", ".data.key") == "value"


def test_a_version_that_dropped_a_field_does_not_get_it_back(app: App) -> None:
    """What a rollback brought back is gone with the next version that does not have it."""
    container = app.template["spec"]["containers"][0]
    container["env"] = [{"name": "OLD", "value": "1"}]
    app.deploy()
    del container["env"]
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    assert "was rolled back" in app.deploy("--timeout=3s", code=1)
    assert app.get("deployment/app", ".spec.template.spec.containers[0].env[*].name") == "OLD"
    del app.template["metadata"]["annotations"][FAILS]
    app.deploy()
    assert not app.get("deployment/app", ".spec.template.spec.containers[0].env")


def test_a_version_that_runs_already_is_not_replaced_by_an_older_one(app: App) -> None:
    """A pod that is lost while nothing changes is no reason to go back to what has been pruned."""
    app.objects["Deployment"]["spec"]["replicas"] = 2
    app.deploy()
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    app.deploy()
    pod = next(name for name in app.names("pods") if name.startswith("app-"))
    states = [{"type": name, "status": "False"} for name in ("Ready", "ContainersReady")]
    patch = json.dumps({"status": {"conditions": states}})
    where = [f"--namespace={app.namespace}", "--subresource=status"]
    app.running.kubectl("patch", "pod", pod, f"--patch={patch}", *where)
    assert "was not rolled out" in app.deploy("--timeout=3s", code=1)
    assert app.image() == "2"


def test_a_first_version_that_fails_is_left(app: App) -> None:
    """There is nothing to go back to, and the message says so."""
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    assert "no pod was ready before" in app.deploy("--timeout=3s", code=1)


def test_pods_that_are_never_made_are_explained(app: App) -> None:
    """Where there is no pod that could tell, the Deployment does."""
    app.objects["Namespace"]["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}
    del app.objects["Job"]
    assert "violates PodSecurity" in app.deploy("--timeout=3s", code=1)


@pytest.mark.parametrize(
    "case",
    ["*logs*) printf '\\377' ;;", '*"get events"*) echo forbidden >&2; false ;;'],
    ids=["no text", "forbidden"],
)
def test_who_can_not_read_why_rolls_back_all_the_same(app: App, case: str) -> None:
    """A log may be no text, and events may be refused."""
    app.deploy()
    app.wrap_kubectl(case)
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    output = app.deploy("--timeout=3s", code=1)
    assert "\ufffd" in output or "forbidden" in output
    assert "was rolled back" in output


def test_where_an_error_leaves_the_cluster_is_told(app: App) -> None:
    """What the cluster refuses in the middle may have been applied in part."""
    del app.objects["Job"]
    app.objects["Service"]["spec"]["ports"] = [{"port": 0}]
    output = app.deploy(code=1)
    assert "Invalid value: 0" in output
    assert "How the cluster was left: some objects are the new version's." in output


def test_the_context_stays_when_people_switch(app: App) -> None:
    """What was current at the start is deployed to and pruned, to the end."""
    config = app.folder / "kubeconfig"
    text = json.loads(app.running.kubeconfig.read_text())
    text["clusters"] += [{"name": "other", "cluster": {"server": "http://127.0.0.1:1"}}]
    text["contexts"] += [{"name": "other", "context": {"cluster": "other"}}]
    config.write_text(json.dumps(text))
    app.environment["KUBECONFIG"] = str(config)
    app.push.write_text(f"#!/bin/sh\n{KUBECTL} config use-context other\n")
    app.deploy()
    assert app.get("deployment/app", ".status.availableReplicas") == "1"


def test_volumes_are_kept(app: App) -> None:
    """A claim that is no longer rendered stays, and so it does when all else is deleted."""
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    app.objects["PersistentVolumeClaim"] = _object("v1", "PersistentVolumeClaim", "data", spec=claim)
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
    app.objects["Autoscaler"] = _object("autoscaling/v1", "HorizontalPodAutoscaler", "app", spec=spec)
    app.objects["Autoscaler"]["metadata"]["namespace"] = app.namespace
    app.deploy()
    assert app.names("horizontalpodautoscalers") == {"app"}


def test_an_extension_of_the_api_that_is_down_does_not_matter(app: App) -> None:
    """Without metrics, kubectl lists the other kinds and fails; there is deployed and pruned all the same."""
    app.wrap_kubectl(f'*api-resources*) {KUBECTL} "$@"; echo stale GroupVersion discovery >&2; false ;;')
    app.deploy()
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    app.deploy()
    assert "config-1" not in app.names("configmaps")


def test_a_migration_ends_before_the_next_begins(app: App) -> None:
    """The Job is deleted with its pods, and only then made anew."""
    app.deploy()
    (pod,) = (name for name in app.names("pods") if name.startswith("migrate"))

    where = f"--namespace={app.namespace}"

    def hold(finalizers: list[str]) -> None:
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        app.running.kubectl("patch", "pod", pod, "--type=merge", f"--patch={patch}", where)

    hold(["example.com/held"])
    assert "while migrating: error: timed out" in app.deploy("--timeout=1s", code=1)
    process = app.start_until("migrating")
    deleted = "--for=jsonpath={.metadata.deletionTimestamp}"
    app.running.kubectl("wait", f"pod/{pod}", deleted, "--timeout=30s", where)
    assert {name for name in app.names("pods") if name.startswith("migrate")} == {pod}
    assert app.get("job/migrate", ".metadata.deletionTimestamp")
    hold([])
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output


def test_what_ctrl_c_in_a_rollback_leaves_is_told(app: App) -> None:
    """The pods before come back, although the new version waited for their end, unless it is stopped."""
    app.objects["Deployment"]["spec"]["strategy"] = {"type": "Recreate"}
    app.template["metadata"]["annotations"][DELAY] = "2s"
    app.deploy()
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    assert "was rolled back" in app.deploy("--timeout=5s", code=1)
    assert app.image() == "1"
    process = app.start_until("rolling back", "--timeout=3s")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped while rolling back: the pods may be of either version. Deploy again" in output


SIGNALS = {"interrupted": signal.SIGINT, "terminated": signal.SIGTERM, "killed": signal.SIGKILL}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_deployment_that_was_stopped_is_finished_by_the_next(app: App, name: str) -> None:
    """Ctrl-C, or what a CI sends, tells the cluster's state; in any case the next run finishes and prunes."""
    app.deploy()
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][DELAY] = "5s"
    process = app.start_until("Waiting for deployment")
    os.killpg(process.pid, SIGNALS[name])
    output, _ = process.communicate(timeout=30)
    if name != "killed":
        assert process.returncode == 130
        assert "stopped while rolling out: the rollout goes on by itself. Deploy again to finish." in output
    assert "config-1" in app.names("configmaps")
    app.deploy()
    assert app.image() == "2"
    assert app.get("deployment/app", ".status.availableReplicas") == "1"
    assert "config-1" not in app.names("configmaps")


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
