"""What k8s/deployer lets an account do: all of a deployment, and no more."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.cluster.cluster import ClusterError
from tools.cluster.testing import FAILS
from tools.kubernetes.deploy.testing import IMAGE, App, make_object

NAME = "user-service-deployer"


@pytest.fixture
def deployer(app: App) -> App:
    """Return an overlay that is deployed with the rights of the deployer alone."""
    apply_role(app, [])
    return app


def apply_role(app: App, without: list[str]) -> None:
    """Make the deployer in the namespace of the overlay, without the rights for some resources."""
    objects = list(yaml.safe_load_all(Path("k8s/deployer/prod.yaml").read_text()))
    for item in objects:
        move(item, app.namespace)
        for rule in item.get("rules", []):
            rule["resources"] = [each for each in rule["resources"] if each not in without] or ["nothing"]
    app.running.kubectl(
        "apply", "--server-side", "--force-conflicts", "--filename=-", stdin=yaml.safe_dump_all(objects)
    )
    token = app.running.kubectl("create", "token", NAME, f"--namespace={app.namespace}")
    config = json.loads(app.running.kubeconfig.read_text())
    config["users"] = [{"name": "admin", "user": {"token": token.strip()}}]
    (app.folder / "kubeconfig").write_text(json.dumps(config))
    app.environment["KUBECONFIG"] = str(app.folder / "kubeconfig")


def move(item: dict[str, Any], namespace: str) -> None:
    """Put an object of the deployer into another namespace; what is the cluster's gets a name of its own."""
    if item["kind"] == "Namespace":
        item["metadata"] = {"name": namespace}  # the pods of the tests are not restricted ones
    elif item["kind"].startswith("Cluster"):
        item["metadata"]["name"] = f"{NAME}-{namespace}"
        if "roleRef" in item:
            item["roleRef"]["name"] = f"{NAME}-{namespace}"
    else:
        item["metadata"]["namespace"] = namespace
    for subject in item.get("subjects", []):
        subject["namespace"] = namespace


def like_prod(app: App) -> None:
    """Give the overlay what prod has besides: rights of others, network policies, an autoscaler."""
    more = [
        make_object("v1", "ServiceAccount", "app"),
        make_object(
            "rbac.authorization.k8s.io/v1",
            "Role",
            "user-service-resolver",
            rules=[
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["get", "list", "watch"],
                }
            ],
        ),
        make_object(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            "resolver",
            roleRef={
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": "user-service-resolver",
            },
            subjects=[{"kind": "ServiceAccount", "name": "app", "namespace": app.namespace}],
        ),
        make_object("networking.k8s.io/v1", "NetworkPolicy", "app", spec={"podSelector": {}}),
        make_object(
            "policy/v1",
            "PodDisruptionBudget",
            "app",
            spec={"maxUnavailable": 1, "selector": {"matchLabels": {"app": "app"}}},
        ),
        make_object(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            "app",
            spec={
                "maxReplicas": 2,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app"},
            },
        ),
    ]
    for item in more:
        item["metadata"]["namespace"] = app.namespace
        app.objects[item["kind"]] = item


def test_it_may_deploy_go_back_prune_and_delete(deployer: App) -> None:
    """The token alone does all that a release needs, in a cluster that is known by its uid."""
    uid = deployer.running.kubectl("get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}")
    deployer.settings(clusters=[uid])
    like_prod(deployer)
    assert "orbidden" not in deployer.deploy()
    deployer.container["image"] = IMAGE + 64 * "2"
    deployer.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    deployer.template["metadata"]["annotations"][FAILS] = "CrashLoopBackOff"
    failed = deployer.deploy("--timeout=3s", code=1)
    assert "was rolled back" in failed
    assert "CrashLoopBackOff" in failed
    assert "may not" not in failed
    del deployer.template["metadata"]["annotations"][FAILS], deployer.objects["NetworkPolicy"]
    pruned = deployer.deploy()
    assert "- ConfigMap/config-1" in pruned
    assert "- NetworkPolicy/app" in pruned
    assert "nothing changes" not in deployer.run("diff")
    deployer.run("delete", "--yes")
    assert deployer.names("deployments,services,networkpolicies,rolebindings,jobs") == {NAME}


def test_it_may_do_no_more(deployer: App) -> None:
    """No Secret, no other namespace, nothing of the cluster, and no right that it could give itself."""

    def may(*what: str) -> bool:
        account = f"--as=system:serviceaccount:{deployer.namespace}:{NAME}"
        try:
            return "yes" in deployer.running.kubectl("auth", "can-i", *what, account)
        except ClusterError:  # it says no with exit code 1
            return False

    where = f"--namespace={deployer.namespace}"
    assert may("patch", "deployments", where)
    assert not may("get", "secrets", where)
    assert not may("list", "configmaps", where)
    assert not may("delete", f"namespaces/{deployer.namespace}", where)
    assert not may("patch", "deployments", "--namespace=default")
    assert not may("get", "namespaces/default")
    assert not may("create", "namespaces")
    assert not may("escalate", "roles", where)
    secrets = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    deployer.objects["Role"] = make_object("rbac.authorization.k8s.io/v1", "Role", "thief", rules=[secrets])
    deployer.objects["Role"]["metadata"]["namespace"] = deployer.namespace
    assert "is attempting to grant RBAC permissions not currently held" in deployer.deploy(code=1)


def test_what_lacks_is_told_once_before_anything_changes(app: App) -> None:
    """Verb, resource and the role to apply: not the API server's line for each object."""
    apply_role(app, without=["services", "deployments"])
    refused = app.deploy(code=1)
    account = f"system:serviceaccount:{app.namespace}:{NAME}"
    assert f"{account} may not get " in refused
    assert refused.count(account) == 1
    assert "kubectl apply -k" in refused
    assert "k8s/deployer" in refused
    assert app.names("configmaps") <= {"kube-root-ca.crt"}


@pytest.mark.parametrize(
    ("resource", "verb"),
    [("jobs", "create"), ("jobs", "delete"), ("configmaps", "delete"), ("replicasets", "list")],
)
def test_what_only_the_end_needs_is_told_at_the_start(deployer: App, resource: str, verb: str) -> None:
    """A right for the migration, for what is removed or for going back is not found missing half-way."""
    deployer.deploy()
    take(deployer, resource, verb)
    deployer.objects["ConfigMap"]["metadata"]["name"] = "config-2"
    refused = deployer.deploy(code=1)
    assert f"{NAME} may not {verb} {resource}" in refused
    assert "preparing" not in refused
    assert deployer.names("configmaps") >= {"config-1"}


def test_who_may_not_delete_all_deletes_nothing(deployer: App) -> None:
    """The namespace comes last, and without the right for it the servers would be gone for nothing."""
    deployer.deploy()
    output = deployer.run("delete", "--yes", "--data", code=1)
    assert f"{NAME} may not delete namespaces" in output
    assert "deleting ..." not in output
    assert deployer.names("deployments") == {"app"}


def test_a_lease_that_may_not_be_renewed_is_told_at_the_start(deployer: App) -> None:
    """Else another deployment could begin in the middle of a long one."""
    take(deployer, "leases", "update")
    assert f"{NAME} may not update leases" in deployer.deploy(code=1)
    assert "config-1" not in deployer.names("configmaps")


def take(app: App, resource: str, verb: str) -> None:
    """Take one right from the deployer."""
    role = json.loads(
        app.running.kubectl("get", "role", NAME, f"--namespace={app.namespace}", "--output=json")
    )
    [rule] = (each for each in role["rules"] if resource in each["resources"] and verb in each["verbs"])
    rule["resources"].remove(resource)
    less = [each for each in rule["verbs"] if each != verb]
    role["rules"] += [rule | {"resources": [resource], "verbs": less}] if less else []
    role["rules"] = [each for each in role["rules"] if each["resources"]]
    app.running.kubectl("replace", "--filename=-", stdin=json.dumps(role))
