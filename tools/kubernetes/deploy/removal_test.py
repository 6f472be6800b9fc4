import json

from tools.kubernetes.deploy.testing import App

HELD = "example.com/held"


def set_finalizers(app: App, name: str, finalizers: list[str]) -> None:
    """Have an object wait, once it is deleted, for a controller that does not exist."""
    patch = json.dumps({"metadata": {"finalizers": finalizers}})
    where = [] if name.startswith("namespace/") else [f"--namespace={app.namespace}"]
    app.running.kubectl("patch", name, "--type=merge", f"--patch={patch}", *where)


def test_what_is_pruned_and_stays_is_named(app: App) -> None:
    """With its finalizers and what to do, within the timeout; the rest is removed."""
    app.deploy()
    set_finalizers(app, "configmap/config-1", [HELD])
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    del app.objects["Job"]
    output = app.deploy("--timeout=3s", code=1)
    assert "not gone after 3 s" in output
    assert "ConfigMap/config-1: deleted at" in output
    assert f"its finalizers: {HELD}" in output
    assert "kubectl patch" in output
    assert "the new version serves" in output
    set_finalizers(app, "configmap/config-1", [])


def test_what_is_deleted_and_stays_is_named(app: App) -> None:
    """All that can go is gone."""
    app.deploy()
    set_finalizers(app, "service/app", [HELD])
    output = app.run("delete", "--yes", "--timeout=2s", code=1)
    assert f"its finalizers: {HELD}" in output
    assert "Service/app: deleted at" in output
    assert app.names("deployments") == set()
    set_finalizers(app, "service/app", [])


def test_a_namespace_that_stays_is_explained(app: App) -> None:
    """By what is left in it; nothing is deployed there meanwhile, and that is told before any step."""
    app.deploy()
    set_finalizers(app, "configmap/config-1", [HELD])
    output = app.run("delete", "--yes", "--data", "--timeout=3s", code=1)
    assert "ConfigMap/config-1: deleted at" in output
    app.running.kubectl("delete", "namespace", app.namespace, "--wait=false")
    waits = "--for=jsonpath={.status.conditions[?(@.type=='NamespaceFinalizersRemaining')].status}=True"
    app.running.kubectl("wait", f"namespace/{app.namespace}", waits, "--timeout=60s")
    for command in ("deploy", "delete"):
        output = app.run(command, "--yes", code=3)
        assert f"namespace {app.namespace} is being deleted" in output
        assert f"{HELD} in 1 resource instances" in output
    set_finalizers(app, "configmap/config-1", [])


def test_a_job_whose_pods_stay_is_named(app: App) -> None:
    """The pod that holds up the next migration is the one to look at."""
    app.deploy()
    [pod] = (name for name in app.names("pods") if name.startswith("migrate"))
    set_finalizers(app, f"pod/{pod}", [HELD])
    output = app.deploy("--timeout=2s", code=1)
    assert f"Pod/{pod} has to end first, its finalizers: {HELD}" in output
    set_finalizers(app, f"pod/{pod}", [])
    app.deploy()
