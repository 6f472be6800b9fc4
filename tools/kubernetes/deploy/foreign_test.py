"""What others set in the pods of a Deployment is told."""

import json
from typing import Any

from tools.cluster.testing import FAILS
from tools.kubernetes.deploy.testing import IMAGE, App


def patch(app: App, template: dict[str, Any], manager: str) -> None:
    """Change the pods as somebody does by hand."""
    options = [f"--field-manager={manager}", f"--namespace={app.namespace}"]
    command = ["patch", "deployment/app", f"--patch={json.dumps({'spec': {'template': template}})}"]
    app.running.kubectl(*command, *options)


def test_fields_of_others_are_told_before_and_when_it_fails(app: App) -> None:
    """Manager, path and value, but no variable's and no token's."""
    app.container["env"] = [{"name": "OURS", "value": "1"}]
    app.container["ports"] = [{"containerPort": 80}]
    assert "others set fields" not in app.deploy()
    assert "others set fields" not in app.deploy("--dry-run")
    sidecar = {"name": "proxy", "image": IMAGE + 64 * "3"}
    variable = {"name": "PASSWORD", "value": "hunter2"}
    ours = {"name": "app", "env": [variable], "imagePullPolicy": "Always"}
    annotations = {"team": "blue\u001b[31m", "operator.example.com/token": "hunter2"}
    patch(app, {"metadata": {"annotations": annotations}, "spec": {"containers": [ours, sidecar]}}, "ada")
    told = app.deploy("--dry-run")
    assert "Deployment/app: others set fields of its pods that are not rendered, and they stay:" in told
    lines = [line.strip() for line in told.splitlines() if "(ada at " in line]
    assert sorted(line.partition(" (ada at ")[0] for line in lines) == [
        "spec.template.metadata.annotations.operator.example.com/token",
        'spec.template.metadata.annotations.team = "blue\\u001b[31m"',
        "spec.template.spec.containers[name=app].env[name=PASSWORD]",
        'spec.template.spec.containers[name=app].imagePullPolicy = "Always"',
        "spec.template.spec.containers[name=proxy]",
    ]
    app.container["image"] = IMAGE + 64 * "2"
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    failed = app.deploy("--timeout=3s", code=1)
    assert "[name=proxy] (ada at " in failed.partition("rolling out ...")[2]
    assert "hunter2" not in told + failed


def test_what_is_rendered_is_nobody_elses(app: App) -> None:
    """Who sets a field to what it is anyway has changed nothing, and a long value is cut."""
    app.deploy()
    patch(app, {"spec": {"containers": [{"name": "app", "image": app.container["image"]}]}}, "ada")
    assert "others set fields" not in app.deploy("--dry-run")
    patch(app, {"metadata": {"annotations": {"note": 100 * "x"}}}, "ada")
    assert f'annotations.note = "{59 * "x"}... (ada at ' in app.deploy("--dry-run")


def test_many_fields_are_not_all_told(app: App) -> None:
    """The rest is counted."""
    app.deploy()
    patch(app, {"metadata": {"annotations": {f"key-{number}": "x" for number in range(30)}}}, "ada")
    told = app.deploy("--dry-run")
    assert told.count("(ada at ") == 20
    assert "and 10 more" in told
