"""What is removed of what was deployed once, by the record of it."""

import json
from typing import Any

import yaml

from tools.cluster.testing import FAILS
from tools.kubernetes.deploy.testing import App, make_object


def test_what_was_deployed_is_in_a_record(app: App) -> None:
    """Nothing has to be listed: the record has group, kind and name of each object that may be removed."""
    app.wrap_kubectl('*api-resources*) echo "may not be listed" >&2; false ;;')
    app.deploy()
    record = app.get("configmap/app-deployed", ".data.objects").split()
    assert record == ["ConfigMap/config-1", "Service/app", "Deployment.apps/app", "Job.batch/migrate"]
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    app.deploy()
    assert "ConfigMap/config-1" not in app.get("configmap/app-deployed", ".data.objects")
    assert "- Deployment/app" in app.run("delete", "--yes")
    assert {"config-2", "app-deployed"}.isdisjoint(app.names("configmaps"))


def test_an_object_of_another_group_is_another_one(app: App) -> None:
    """A kind that moves to another group leaves nothing behind; another version is the same object."""
    app.running.kubectl("apply", "--server-side", "--filename=-", stdin=yaml.safe_dump_all(gateways()))
    app.running.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    app.objects["Gateway"] = make_object("old.example.com/v1", "Gateway", "edge")
    app.objects["Gateway"]["metadata"]["namespace"] = app.namespace
    app.deploy()
    app.objects["Gateway"]["apiVersion"] = "old.example.com/v2"
    assert "- Gateway/edge" not in app.deploy()
    app.objects["Gateway"]["apiVersion"] = "new.example.com/v1"
    assert "- Gateway/edge" in app.deploy()
    assert app.names("gateways.new.example.com") == {"edge"}
    assert app.names("gateways.old.example.com") == set()


def gateways() -> list[dict[str, Any]]:
    """Return the definitions of two kinds of the same name."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return [
        make_object(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            f"gateways.{group}.example.com",
            spec={
                "group": f"{group}.example.com",
                "names": {"kind": "Gateway", "plural": "gateways"},
                "scope": "Namespaced",
                "versions": [
                    {"name": version, "served": True, "storage": version == "v1", "schema": schema}
                    for version in ("v1", "v2")
                ],
            },
        )
        for group in ("old", "new")
    ]


def test_what_somebody_took_over_is_not_removed(app: App) -> None:
    """Who takes the label away keeps the object, also one that was made anew under its name."""
    app.deploy()
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    label = "grpc-on-kubernetes/deployed-as-"
    app.running.kubectl("label", "configmap/config-1", label, f"--namespace={app.namespace}")
    assert "- ConfigMap/config-1" not in app.deploy()
    assert "config-1" in app.names("configmaps")


def test_what_was_deployed_before_there_was_a_record_is_told(app: App) -> None:
    """What an older version has left can't be known, and the note says how to find it."""
    app.deploy()
    app.running.kubectl("delete", "configmap/app-deployed", f"--namespace={app.namespace}")
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    output = app.deploy()
    assert "ConfigMap/app-deployed is not there" in output
    assert "--selector=grpc-on-kubernetes/deployed-as=app" in output
    assert "config-1" in app.names("configmaps")
    assert "is not there" not in app.deploy()


def test_a_kind_that_is_gone_hides_nothing(app: App) -> None:
    """Its objects went with its definition; the others of the record are found all the same."""
    app.deploy()
    record = app.get("configmap/app-deployed", ".data.objects") + "Gone.example.com/a\nGone.example.com/b\n"
    patch = json.dumps({"data": {"objects": record}})
    app.running.kubectl("patch", "configmap/app-deployed", f"--patch={patch}", f"--namespace={app.namespace}")
    app.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    assert "- ConfigMap/config-1" in app.deploy()
    assert "config-1" not in app.names("configmaps")
    assert "Gone" not in app.get("configmap/app-deployed", ".data.objects")


def test_what_a_failed_deployment_made_is_known(app: App) -> None:
    """A version that never came up is cleaned up after by the next one."""
    app.objects["Extra"] = make_object("v1", "ConfigMap", "extra", data={})
    app.objects["Extra"]["metadata"]["namespace"] = app.namespace
    app.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    app.deploy("--timeout=3s", code=1)
    assert "extra" in app.names("configmaps")
    del app.objects["Extra"], app.template["metadata"]["annotations"][FAILS]
    assert "- ConfigMap/extra" in app.deploy()
    assert "extra" not in app.names("configmaps")
