from typing import Any

from tools.kubernetes.deploy.testing import IMAGE, App, make_object


def add_autoscaler(app: App, name: str = "app", **spec: Any) -> dict[str, Any]:
    """Have an autoscaler of the Deployment; without metrics it only keeps to its least and most."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"}
    # In Kubernetes' default one is looked at every 15 s.
    spec = {"minReplicas": 2, "maxReplicas": 9} | spec | {"scaleTargetRef": target}
    made = make_object("autoscaling/v2", "HorizontalPodAutoscaler", name, spec=spec)
    made["metadata"]["namespace"] = app.namespace
    app.objects["HorizontalPodAutoscaler"] = made
    return made


def scale(app: App, replicas: int) -> None:
    """Have somebody else set the replicas."""
    app.running.kubectl("scale", "deployment/app", f"--replicas={replicas}", f"--namespace={app.namespace}")


def test_an_autoscaler_that_is_added_keeps_the_pods(app: App) -> None:
    """The replicas that were rendered stay until it has counted, and are not announced as a change."""
    app.objects["Deployment"]["spec"]["replicas"] = 4
    app.deploy()
    pods = app.server_pods()
    del app.objects["Deployment"]["spec"]["replicas"]
    add_autoscaler(app)
    output = app.deploy("--diff")
    assert "+ HorizontalPodAutoscaler/app" in output
    assert "~ Deployment" not in output.replace("~ Deployment/app", "", output.count("change-cause"))
    assert app.server_pods() == pods
    assert "Scaled down" not in app.running.kubectl("get", "events", f"--namespace={app.namespace}")
    assert app.get("deployment/app", ".spec.replicas") == "4"


def test_replicas_beside_an_autoscaler_are_left_out(app: App) -> None:
    """Of one that is rendered, or that somebody else made; the first deployment says so already."""
    app.objects["Deployment"]["spec"]["replicas"] = 3
    add_autoscaler(app)
    app.deploy()
    scale(app, 5)
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    output = app.deploy()
    assert "Deployment/app: replicas: 3 is left out, since HorizontalPodAutoscaler/app counts them" in output
    assert app.get("deployment/app", ".spec.replicas") == "5"


def test_an_autoscaler_of_somebody_else_counts(app: App) -> None:
    """It is not rendered, and stays."""
    app.objects["Deployment"]["spec"]["replicas"] = 3
    app.deploy()
    where = f"--namespace={app.namespace}"
    app.running.kubectl("autoscale", "deployment/app", "--min=2", "--max=9", "--name=theirs", where)
    scale(app, 5)
    assert "since HorizontalPodAutoscaler/theirs counts them" in app.deploy()
    assert app.get("deployment/app", ".spec.replicas") == "5"
    assert app.names("horizontalpodautoscalers") == {"theirs"}


def test_an_autoscaler_that_is_removed_counts_to_the_end(app: App) -> None:
    """The rendered replicas hold once it is gone: earlier it would take them back, or a rollback miss it."""
    add_autoscaler(app)
    app.deploy()
    scale(app, 5)
    del app.objects["HorizontalPodAutoscaler"]
    app.objects["Deployment"]["spec"]["replicas"] = 3
    app.template["spec"]["containers"][0]["image"] = IMAGE + 64 * "2"
    output = app.deploy()
    assert "replicas: 3 holds once HorizontalPodAutoscaler/app is removed" in output
    events = app.running.kubectl("get", "events", f"--namespace={app.namespace}")
    assert events.count(" to 5\n") == 2, "neither the old pods nor the new ones were 5"
    assert app.get("deployment/app", ".spec.replicas") == "3"
    assert app.names("horizontalpodautoscalers") == set()


def test_no_replicas_beside_an_autoscaler_are_repaired(app: App) -> None:
    """Kubernetes' autoscaler leaves 0 alone, so that no pod would ever come."""
    add_autoscaler(app)
    app.deploy()
    scale(app, 0)
    output = app.deploy()
    assert "Deployment/app had 0 replicas, at which HorizontalPodAutoscaler/app does nothing" in output
    assert app.get("deployment/app", ".status.availableReplicas") == "2"


def test_an_autoscaler_that_may_have_none_is_left_alone(app: App) -> None:
    """KEDA wakes the Deployment itself; what is rolled out is said to serve nobody now."""
    app.deploy()
    made = add_autoscaler(app, name="keda-hpa-app")
    owner = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": "app", "uid": "1-2-3"}
    made["metadata"]["ownerReferences"] = [owner | {"controller": True}]
    scale(app, 0)
    assert "Deployment/app has 0 replicas: no pod will serve" in app.deploy()
    assert app.get("deployment/app", ".spec.replicas") == "0"


def test_no_replicas_without_an_autoscaler_are_said(app: App) -> None:
    """Somebody may want it so."""
    app.deploy()
    scale(app, 0)
    assert "Deployment/app has 0 replicas: no pod will serve" in app.deploy()
