import json
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from tools.cluster.testing import DELAY
from tools.kubernetes.deploy import lease
from tools.kubernetes.deploy.kubectl import Kubectl
from tools.kubernetes.deploy.testing import KUBECTL, App, make_object


def hold(app: App, renewed: datetime, holder: str = "alice@laptop-1") -> None:
    """Have somebody else hold the Lease since a time."""
    at = f"{renewed:%Y-%m-%dT%H:%M:%S.%fZ}"
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 30, "acquireTime": at, "renewTime": at}
    item = make_object("coordination.k8s.io/v1", "Lease", "deploy-app", spec=spec)
    item["metadata"]["namespace"] = app.namespace
    text = json.dumps(item)
    app.running.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=text)


def make_namespace(app: App) -> None:
    """Have the namespace of an application that is not deployed yet."""
    app.running.kubectl("create", "namespace", app.namespace)


def test_of_two_at_once_the_second_is_refused(app: App) -> None:
    """At once, with who the first is, since when, and when its Lease expires; a deletion too."""
    app.template["metadata"]["annotations"][DELAY] = "6s"
    first = app.start_until("rolling out")
    for output in (app.deploy(code=3), app.run("delete", "--yes", code=3)):
        assert app.get("lease/deploy-app", ".spec.holderIdentity") in output
        assert f"has been deploying here since {datetime.now(UTC):%Y-%m-%d}" in output
        assert "Lease/deploy-app expires in" in output
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    assert app.get("lease/deploy-app", ".spec.holderIdentity") == ""
    app.deploy()


def test_an_expired_lease_is_taken_over(app: App) -> None:
    """Whoever held it is named."""
    make_namespace(app)
    hold(app, datetime.now(UTC) - timedelta(seconds=31))
    assert "taking over Lease/deploy-app: alice@laptop-1 has not renewed it" in app.deploy()


@pytest.mark.parametrize("year", [2099, 9999])
def test_a_lease_from_a_wrong_clock_can_be_freed(app: App, year: int) -> None:
    """It would hold for years, and nobody renews it."""
    make_namespace(app)
    hold(app, datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC))
    output = app.deploy(code=3)
    assert f"alice@laptop-1 has been deploying here since {year}-12-31" in output
    assert f"`kubectl delete lease/deploy-app --namespace={app.namespace}`" in output


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": "a"}, {"holderIdentity": "", "leaseTransitions": 7}])
def test_a_lease_of_another_form_is_taken(app: App, spec: dict[str, object]) -> None:
    """Nobody holds what was never renewed."""
    make_namespace(app)
    item = make_object("coordination.k8s.io/v1", "Lease", "deploy-app", spec=spec)
    app.running.kubectl("create", f"--namespace={app.namespace}", "--filename=-", stdin=json.dumps(item))
    assert "app is rolled out" in app.deploy()


def test_what_others_wrote_does_not_steer_the_terminal(app: App) -> None:
    """A holder may call itself anything."""
    make_namespace(app)
    hold(app, datetime.now(UTC), "alice\x1b[2J\u202e")
    output = app.deploy(code=3)
    assert r"alice\x1b[2J\u202e has been deploying" in output


@pytest.mark.parametrize("name", ["interrupted", "terminated"])
def test_a_deployment_that_is_stopped_releases_its_lease(app: App, name: str) -> None:
    """The next one need not wait."""
    app.template["metadata"]["annotations"][DELAY] = "20s"
    process = app.start_until("rolling out")
    os.killpg(process.pid, {"interrupted": signal.SIGINT, "terminated": signal.SIGTERM}[name])
    process.communicate(timeout=30)
    assert app.get("lease/deploy-app", ".spec.holderIdentity") == ""


def test_a_second_ctrl_c_loses_neither_the_lease_nor_the_word(app: App) -> None:
    """People press it twice; how the cluster was left is told all the same."""
    app.template["metadata"]["annotations"][DELAY] = "20s"
    app.wrap_kubectl(f'*"replace --namespace"*) sleep 1; exec {KUBECTL} "$@" ;;')
    process = app.start_until("rolling out")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)  # while the Lease is released
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped while rolling out" in output
    assert app.get("lease/deploy-app", ".spec.holderIdentity") == ""


def test_a_deployment_that_fails_releases_its_lease(app: App) -> None:
    """So does one whose objects are refused."""
    app.objects["Service"]["spec"]["ports"] = [{"port": 0}]
    assert "Invalid value: 0" in app.deploy(code=1)
    assert app.get("lease/deploy-app", ".spec.holderIdentity") == ""


def test_a_lost_lease_stops_a_deployment(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command is run any more, not even to roll back; the Lease stays the other's."""
    make_namespace(app)
    monkeypatch.setenv("KUBECONFIG", str(app.running.kubeconfig))
    monkeypatch.setattr(lease, "_RENEWAL", 0.1)
    ours = Kubectl(KUBECTL, None)
    with pytest.raises(lease.LostError, match="bob@desk-2 has taken over Lease/deploy-app"):
        read_until_lost(app, ours)
    assert app.get("lease/deploy-app", ".spec.holderIdentity") == "bob@desk-2"


def read_until_lost(app: App, kubectl: Kubectl) -> None:
    """Read something again and again, while somebody else takes the Lease over."""
    with lease.held(kubectl, app.namespace, "app") as guarded:
        guarded.read("get", "namespaces")
        hold(app, datetime.now(UTC), "bob@desk-2")
        while True:
            guarded.read("get", "namespaces")


def test_a_deployment_that_slept_asks_before_it_goes_on(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that was closed for longer than the Lease's time may have lost it."""
    make_namespace(app)
    monkeypatch.setenv("KUBECONFIG", str(app.running.kubeconfig))
    monkeypatch.setattr(lease, "_DURATION", 1)
    ours = Kubectl(KUBECTL, None)
    with pytest.raises(lease.LostError, match="somebody released or deleted"):
        read_after_loss(app, ours)


def read_after_loss(app: App, kubectl: Kubectl) -> None:
    """Read something after the Lease is gone, and before its next renewal."""
    with lease.held(kubectl, app.namespace, "app") as guarded:
        where = f"--namespace={app.namespace}"
        app.running.kubectl("delete", "lease/deploy-app", where)
        while True:
            guarded.read("get", "namespaces")
