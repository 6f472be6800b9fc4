"""What other people and programs do to a deployment while it is under way, or did before."""

import json
import os
import signal
import time
from typing import Any

import pytest

from tools.cluster.testing import DELAY, FAILS
from tools.kubernetes.deploy import rollout
from tools.kubernetes.deploy.kubectl import Kubectl
from tools.kubernetes.deploy.testing import IMAGE, KUBECTL, App, make_object


def apply(app: App, item: dict[str, Any]) -> None:
    """Have somebody else make an object."""
    item["metadata"].setdefault("namespace", app.namespace)
    app.running.kubectl("create", "--filename=-", stdin=json.dumps(item))


def kubectl(app: App, *arguments: str) -> str:
    """Have somebody else run a command in the namespace."""
    return app.running.kubectl(*arguments, f"--namespace={app.namespace}")


def patch(app: App, name: str, **fields: Any) -> None:
    """Have somebody else change an object."""
    kubectl(app, "patch", name, "--type=merge", f"--patch={json.dumps(fields)}")


def wait_for_job(app: App) -> None:
    """Wait until the migration is under way."""
    for what in ("create", "jsonpath={.status.active}=1"):
        kubectl(app, "wait", "job/migrate", f"--for={what}", "--timeout=30s")


def test_another_job_of_the_same_name_is_not_ones_own(app: App) -> None:
    """What it did is not what this version's migration does."""
    app.objects["Job"]["spec"]["template"]["metadata"]["annotations"][DELAY] = "60s"
    process = app.start_until("migrating")
    wait_for_job(app)
    os.killpg(process.pid, signal.SIGSTOP)  # or it may look while there is none
    kubectl(app, "delete", "job/migrate")
    kubectl(app, "create", "job", "migrate", "--image=busybox")
    os.killpg(process.pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Job/migrate is not the one that this deployment made: somebody else made it at 2" in output


def test_a_job_that_somebody_deletes_is_told(app: App) -> None:
    """It has not completed."""
    app.objects["Job"]["spec"]["template"]["metadata"]["annotations"][DELAY] = "60s"
    process = app.start_until("migrating")
    wait_for_job(app)
    kubectl(app, "delete", "job/migrate")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Job/migrate was deleted by somebody else before it was seen to complete" in output


def test_a_job_that_somebody_deletes_and_that_stays_is_told(app: App) -> None:
    """With the finalizer that keeps it, and not after the timeout."""
    app.objects["Job"]["spec"]["template"]["metadata"]["annotations"][DELAY] = "60s"
    process = app.start_until("migrating")
    wait_for_job(app)
    patch(app, "job/migrate", metadata={"finalizers": ["example.com/hold"]})
    kubectl(app, "delete", "job/migrate", "--wait=false")
    try:
        output, _ = process.communicate(timeout=30)
    finally:
        patch(app, "job/migrate", metadata={"finalizers": None})
    assert process.returncode == 1
    assert "deleted by somebody else before it had completed, and is going" in output
    assert "example.com/hold" in output


def test_a_job_that_somebody_suspends_is_told(app: App) -> None:
    """Who did it is said at once, since nothing else will happen."""
    app.objects["Job"]["spec"]["template"]["metadata"]["annotations"][DELAY] = "60s"
    process = app.start_until("migrating")
    wait_for_job(app)
    patch(app, "job/migrate", spec={"suspend": True})
    assert process.stdout
    line = next(line for line in process.stdout if line.startswith("Job/migrate:"))
    assert "it is suspended by kubectl-patch at 2" in line
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.parametrize(("field", "value"), [("suspend", True), ("ttlSecondsAfterFinished", 0)])
def test_a_job_that_would_never_be_seen_to_end_is_refused(app: App, field: str, value: object) -> None:
    """Before anything changes: it would be waited for in vain, or taken for deleted."""
    app.objects["Job"]["spec"][field] = value
    assert f"Job/migrate has spec.{field}: {str(value).lower()}" in app.deploy(code=3)


def warn(app: App, name: str, reason: str, uid: str) -> None:
    """Have an event about the Deployment."""
    about = {"kind": "Deployment", "name": "app", "namespace": app.namespace, "uid": uid}
    event = make_object("v1", "Event", name, involvedObject=about, type="Warning", reason=reason)
    apply(app, event | {"message": "simulated", "firstTimestamp": "2030-01-01T00:00:00Z"})


def test_only_what_happened_since_the_start_is_told(app: App) -> None:
    """Not what happened before, whatever its clock said, nor to another object of the name."""
    app.deploy()
    uid = app.get("deployment/app", ".metadata.uid")
    warn(app, "before", "ReasonOfYesterday", uid)
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    process = app.start_until("rolling out", "--timeout=4s")
    warn(app, "now", "ReasonOfToday", uid)
    warn(app, "other", "ReasonOfAnother", "1-2-3")
    output, _ = process.communicate(timeout=60)
    assert "ReasonOfToday: simulated" in output
    assert "ReasonOfYesterday" not in output
    assert "ReasonOfAnother" not in output


def test_only_the_new_pods_are_told_of(app: App) -> None:
    """Another's pod with the same labels is no reason."""
    app.deploy()
    pod = make_object("v1", "Pod", "debug", spec=app.template["spec"])
    pod["metadata"] |= {"labels": {"app": "app"}, "annotations": {FAILS: "ImagePullBackOff"}}
    apply(app, pod)
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    output = app.deploy("--timeout=3s", code=1)
    assert "CrashLoopBackOff" in output
    assert "Pod/debug" not in output


def test_a_deployment_that_was_paused_is_resumed(app: App) -> None:
    """Who paused it is said before the question."""
    app.deploy()
    kubectl(app, "rollout", "pause", "deployment/app")
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    assert "Deployment/app is paused, by kubectl-rollout at 2" in app.deploy("--dry-run")
    assert "it is resumed" in app.deploy("--timeout=20s")
    assert app.get("deployment/app", ".status.updatedReplicas") == "1"


def test_a_pause_in_the_middle_is_told_at_once(app: App) -> None:
    """Who did it knows why, and nothing is rolled back."""
    app.deploy()
    app.template["metadata"]["annotations"][DELAY] = "60s"
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    process = app.start_until("Waiting for")
    kubectl(app, "rollout", "pause", "deployment/app")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Deployment/app was paused meanwhile by kubectl-rollout at 2" in output
    assert app.image() == "2"


def test_an_overlay_that_is_paused_is_refused(app: App) -> None:
    """It would never roll out."""
    app.objects["Deployment"]["spec"]["paused"] = True
    assert "Deployment/app has spec.paused: true" in app.deploy(code=3)


def test_a_deployment_that_somebody_deletes_is_told(app: App) -> None:
    """At once, rather than after the timeout."""
    app.template["metadata"]["annotations"][DELAY] = "60s"
    process = app.start_until("Waiting for")
    kubectl(app, "delete", "deployment/app")
    output, _ = process.communicate(timeout=30)
    assert "Deployment/app was deleted meanwhile" in output
    assert process.returncode == 1


def test_a_failed_migration_leaves_the_release_as_it_is(app: App) -> None:
    """Services, network policies and pods are those of the version that serves; configuration is new."""
    policy = make_object(
        "networking.k8s.io/v1", "NetworkPolicy", "app", spec={"podSelector": {}, "ingress": [{}]}
    )
    policy["metadata"]["namespace"] = app.namespace
    app.objects["NetworkPolicy"] = policy
    app.deploy()
    policy["spec"] = {"podSelector": {}, "egress": [{}]}
    app.objects["Service"]["spec"]["ports"] = [{"port": 2}]
    app.objects["ConfigMap"]["data"]["key"] = "new"
    container = app.objects["Job"]["spec"]["template"]["spec"]["containers"][0]
    container["envFrom"] = [{"configMapRef": {"name": "config-1"}}]
    app.objects["Job"]["spec"]["template"]["metadata"]["annotations"][FAILS] = "Error"
    app.deploy(code=1)
    assert app.get("service/app", ".spec.ports[0].port") == "1"
    assert app.get("networkpolicy/app", ".spec.ingress") == "[{}]"
    assert app.get("networkpolicy/app-for-migrate", ".spec.podSelector.matchLabels") == '{"app":"migrate"}'
    assert app.get("configmap/config-1", ".data.key") == "new"
    del app.objects["Job"]["spec"]["template"]["metadata"]["annotations"][FAILS]
    app.deploy()
    assert app.names("networkpolicies") == {"app"}


def test_a_quota_is_told_early(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is printed while it is waited for the old pods' end, and not for the whole timeout."""
    app.deploy()
    apply(app, make_object("v1", "ResourceQuota", "q", spec={"hard": {"pods": "1"}}))
    kubectl(app, "wait", "resourcequota/q", "--for=jsonpath={.status.hard.pods}=1", "--timeout=30s")
    kubectl(app, "delete", "job/migrate", "--cascade=foreground")
    del app.objects["Job"]
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    process = app.start_until("Deployment/app: pods ")
    process.terminate()
    process.communicate(timeout=30)
    monkeypatch.setattr(rollout, "_PATIENCE_FOR_PODS", 0)
    monkeypatch.setenv("KUBECONFIG", str(app.running.kubeconfig))
    started = time.monotonic()
    with pytest.raises(rollout.FailedError, match="was not rolled out"):
        rollout.wait_for_deployment(Kubectl(KUBECTL, None), app.objects["Deployment"], timeout=60)
    assert time.monotonic() < started + 30


def test_a_migration_without_pods_says_why(app: App) -> None:
    """A Job tells by its events only."""
    app.running.kubectl("create", "namespace", app.namespace)
    apply(app, make_object("v1", "ResourceQuota", "q", spec={"hard": {"pods": "0"}}))
    kubectl(app, "wait", "resourcequota/q", "--for=jsonpath={.status.hard.pods}=0", "--timeout=30s")
    process = app.start_until("Job/migrate: FailedCreate: Error creating: pods ")
    process.terminate()
    assert process.wait(timeout=30) == 130


def test_a_webhook_that_is_down_is_told_at_once(app: App) -> None:
    """It is not taken for a network that is back soon."""
    app.deploy()
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": app.namespace}}
    webhook = {
        "name": "down.example.com",
        "rules": [rule],
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "namespaceSelector": here,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    }
    kind = "ValidatingWebhookConfiguration"
    configuration = make_object("admissionregistration.k8s.io/v1", kind, app.namespace, webhooks=[webhook])
    apply(app, configuration)
    try:
        app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
        output = app.deploy(code=1)
    finally:
        app.running.kubectl("delete", kind, app.namespace)
    assert 'failed calling webhook "down.example.com"' in output
    assert "trying again" not in output
