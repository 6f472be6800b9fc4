import copy
import json
import os
import signal
from typing import Any

import pytest

from tools.cluster.testing import DELAY, FAILS
from tools.kubernetes.deploy.testing import IMAGE, App


def test_a_version_that_does_not_come_up_is_explained_and_rolled_back(app: App) -> None:
    """The pod's reason and warnings are shown, and what the old version needs is still there."""
    app.deploy()
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    app.container["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][FAILS] = "ImagePullBackOff"
    output = app.deploy("--timeout=3s", code=1)
    assert "ImagePullBackOff" in output
    assert "Failed: simulated" in output
    assert "was rolled back" in output
    assert app.image() == "1"
    assert app.get("deployment/app", ".status.availableReplicas") == "1"
    assert "config-1" in app.names("configmaps")


def test_the_log_is_that_of_the_container_that_fails(app: App) -> None:
    """Of a pod with a sidecar before ours, kubectl would take the sidecar's."""
    app.template["spec"]["containers"].insert(0, {"name": "a-proxy", "image": app.container["image"]})
    app.wrap_kubectl('*"logs Pod/app-"*--container=app*) echo "this one" ;;')
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    output = app.deploy("--timeout=3s", code=1)
    assert "    app: this one" in output
    assert "app: CrashLoopBackOff" in output


def add_smoke(app: App) -> dict[str, Any]:
    """Give the overlay a Job that calls the new version; return the annotations of its pods."""
    job = copy.deepcopy(app.objects["Job"])
    job["metadata"] |= {"name": "smoke", "annotations": {"grpc-on-kubernetes/after-rollout": "true"}}
    job["spec"]["template"]["metadata"]["labels"] = {"app": "smoke"}
    app.objects["Smoke"] = job
    annotations: dict[str, Any] = job["spec"]["template"]["metadata"]["annotations"]
    return annotations


def test_a_version_is_tried_out_once_it_is_rolled_out(app: App) -> None:
    """The Job that calls it comes after the migration and after the pods are available."""
    add_smoke(app)
    app.template["metadata"]["annotations"][DELAY] = "3s"
    output = app.deploy()
    assert output.index("migrating ...") < output.index("rolling out ...") < output.index("trying out ...")
    available = app.get("deployment/app", '.status.conditions[?(@.type=="Available")].lastTransitionTime')
    assert app.get("job/migrate", ".status.completionTime") <= available
    assert app.get("job/smoke", ".metadata.creationTimestamp") >= available


def test_a_version_that_fails_its_first_call_is_rolled_back(app: App) -> None:
    """It was ready all the same; the pods before are back, and what they need is still there."""
    smoke = add_smoke(app)
    app.deploy()
    app.container["image"] = IMAGE + 64 * "2"
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    smoke[FAILS] = "Error"
    output = app.deploy(code=1)
    assert "Job/smoke failed; Deployment/app was rolled back to the pods that served before" in output
    assert app.image() == "1"
    assert "config-1" in app.names("configmaps")
    assert "Job/smoke failed; it was left as it is" in app.deploy("--no-rollback", code=1)
    assert app.image() == "2"
    del smoke[FAILS]
    app.deploy()
    assert "config-1" not in app.names("configmaps")


def test_a_call_that_can_not_be_made_is_found_before_the_rollout(app: App) -> None:
    """A Job that does not go, or one that the cluster refuses, leaves the servers as they are."""
    add_smoke(app)
    app.deploy()
    app.container["image"] = IMAGE + 64 * "2"
    where = f"--namespace={app.namespace}"
    patch = ("patch", "job/smoke", where, "--type=merge")
    app.running.kubectl(*patch, '--patch={"metadata":{"finalizers":["example.com/hold"]}}')
    try:
        output = app.deploy("--timeout=3s", code=1)
    finally:
        app.running.kubectl(*patch, '--patch={"metadata":{"finalizers":null}}')
    assert "while making room: not gone after 3 s" in output
    assert "example.com/hold" in output
    app.objects["Smoke"]["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    output = app.deploy(code=1)
    assert "restartPolicy: Required value" in output
    assert "preparing" not in output
    assert app.image() == "1"


def test_a_failed_version_is_left_when_told_so(app: App) -> None:
    """--no-rollback leaves the pods to be looked at; the next deployment repairs."""
    app.deploy()
    app.container["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    assert "left as it is" in app.deploy("--timeout=3s", "--no-rollback", code=1)
    assert app.image() == "2"
    del app.template["metadata"]["annotations"][FAILS]
    app.deploy()
    assert app.get("deployment/app", ".status.availableReplicas") == "1"


def test_a_failed_migration_keeps_the_old_servers(app: App) -> None:
    """Why it failed is shown, and no pod is touched."""
    app.deploy()
    app.container["image"] = IMAGE + 64 * "2"
    app.objects["Job"]["spec"]["template"]["metadata"]["annotations"][FAILS] = "Error"
    output = app.deploy(code=1)
    assert "Job/migrate failed" in output
    assert "exit" in output.lower() or "Error 1" in output
    assert app.image() == "1"


def test_a_migration_that_is_tried_again_says_so(app: App) -> None:
    """Nobody stares at a silent line while Kubernetes waits longer and longer between its pods."""
    job = app.objects["Job"]["spec"]
    job["backoffLimit"] = 5
    job["template"]["metadata"]["annotations"][FAILS] = "Error"
    process = app.start_until("Job/migrate: 1 of its pods failed; another will try")
    process.terminate()
    assert process.wait(timeout=30) == 130


def test_a_version_that_dropped_a_field_does_not_get_it_back(app: App) -> None:
    """What a rollback brought back is gone with the next version that does not have it."""
    container = app.container
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
    old = app.server_pods()
    app.container["image"] = IMAGE + 64 * "2"
    app.deploy()
    [pod, _] = app.server_pods() - old
    states = [{"type": name, "status": "False"} for name in ("Ready", "ContainersReady")]
    patch = json.dumps({"status": {"conditions": states}})
    where = f"--namespace={app.namespace}"
    app.running.kubectl("patch", "pod", pod, f"--patch={patch}", "--subresource=status", where)
    lost = "--for=jsonpath={.status.unavailableReplicas}=1"
    app.running.kubectl("wait", "deployment/app", lost, "--timeout=30s", where)
    del app.objects["Job"]  # it may take longer than that
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


def test_what_ctrl_c_in_a_rollback_leaves_is_told(app: App) -> None:
    """The pods before come back, although the new version waited for their end, unless it is stopped."""
    app.objects["Deployment"]["spec"]["strategy"] = {"type": "Recreate"}
    app.template["metadata"]["annotations"][DELAY] = "2s"
    app.deploy()
    app.container["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    assert "was rolled back" in app.deploy("--timeout=5s", code=1)
    assert app.image() == "1"
    process = app.start_until("rolling back", "--timeout=3s")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped while rolling back: the pods may be of either version. Deploy again" in output


def expire_lease(app: App) -> None:
    """Have the Lease of a deployment end early that can't renew it any more."""
    patch = json.dumps({"spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}})
    where = f"--namespace={app.namespace}"
    app.running.kubectl("patch", "lease/deploy-app", "--type=merge", f"--patch={patch}", where)


SIGNALS = {"interrupted": signal.SIGINT, "terminated": signal.SIGTERM, "killed": signal.SIGKILL}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_deployment_that_was_stopped_is_finished_by_the_next(app: App, name: str) -> None:
    """Ctrl-C, or what a CI sends, tells the cluster's state; in any case the next run finishes and prunes."""
    app.deploy()
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    app.container["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][DELAY] = "5s"
    process = app.start_until("Waiting for Deployment/app")
    os.killpg(process.pid, SIGNALS[name])
    output, _ = process.communicate(timeout=30)
    if name != "killed":
        assert process.returncode == 130
        assert "stopped while rolling out: the rollout goes on by itself. Deploy again to finish." in output
    else:
        expire_lease(app)
    assert "config-1" in app.names("configmaps")
    app.deploy()
    assert app.image() == "2"
    assert app.get("deployment/app", ".status.availableReplicas") == "1"
    assert "config-1" not in app.names("configmaps")


def test_a_deletion_that_is_stopped_tells_what_is_gone(app: App) -> None:
    """Ctrl-C is told with its own exit code outside of deploying too; the next time deletes the rest."""
    app.deploy()
    app.wrap_kubectl('*"delete Deployment.v1.apps/app"*) sleep 60 ;;')
    process = app.start("delete", "--yes")
    assert process.stdout
    assert any(line.startswith("deleting") for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped while deleting" in output
    app.wrap_kubectl("*none*) ;;")
    app.run("delete", "--yes")
    assert app.names("deployments") == set()


def take_over(app: App, template: dict[str, Any]) -> None:
    """Have somebody change the pods who asks no Lease."""
    where = f"--namespace={app.namespace}"
    patch = json.dumps({"spec": {"template": template}})
    app.running.kubectl("patch", "deployment/app", f"--patch={patch}", where)


def test_a_deployment_that_was_overtaken_removes_nothing(app: App) -> None:
    """Where somebody changed the pods meanwhile, what those need is left."""
    app.deploy()
    app.template["metadata"]["annotations"][DELAY] = "20s"
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    process = app.start_until("Waiting for")
    image = {"name": "app", "image": IMAGE + 64 * "2"}
    take_over(app, {"metadata": {"annotations": {DELAY: "0s"}}, "spec": {"containers": [image]}})
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "another version was deployed meanwhile, and nothing was removed" in output
    assert "config-1" in app.names("configmaps")


def test_a_failed_deployment_that_was_overtaken_rolls_nothing_back(app: App) -> None:
    """The pods that it would bring back are not those before the other's."""
    app.deploy()
    app.template["metadata"]["annotations"][FAILS] = "ImagePullBackOff"
    process = app.start_until("Waiting for", "--timeout=5s")
    take_over(app, {"spec": {"containers": [{"name": "app", "image": IMAGE + 64 * "2"}]}})
    output, _ = process.communicate(timeout=90)
    assert "another version was deployed meanwhile, and it was left as it is" in output
    assert app.image() == "2"
