"""The rights of who deploys: what staging and prod render, and no more."""

from collections.abc import Iterator
from typing import Any

import pytest

from k8s.checks import rendered
from k8s.checks.lint import RULES
from k8s.checks.testing import overlay, texts

ENVIRONMENTS = ("prod", "staging")

WRITTEN = ("get", "create", "patch", "delete")

type Right = tuple[str, str, str]
"""API group, resource, verb."""

OF_THE_TOOL: dict[tuple[str, str], set[str]] = {
    ("", "namespaces"): {"get", "patch"},
    ("", "configmaps"): set(WRITTEN),  # the record
    ("coordination.k8s.io", "leases"): {"get", "create", "update"},
    ("apps", "deployments/scale"): {"get", "patch", "update"},
    ("apps", "replicasets"): {"list"},
    ("", "pods"): {"get", "list"},
    ("", "pods/log"): {"get"},
    ("", "events"): {"list"},
    ("autoscaling", "horizontalpodautoscalers"): {"list"},
}
"""What tools/kubernetes reads and writes besides what is rendered."""


def resource_of(kind: str) -> str:
    """Return the plural of a kind, as its API calls it."""
    name = kind.lower()
    return f"{name[:-1]}ies" if name.endswith("cy") else f"{name}es" if name.endswith("ss") else f"{name}s"


def rights(rules: list[dict[str, Any]]) -> set[Right]:
    """Return what rules of a Role allow."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def of_kind(name: str, kind: str) -> dict[str, Any]:
    """Return the only object of a kind of a deployer."""
    [found] = [item for item in rendered.load(f"deployer/{name}") if item["kind"] == kind]
    return found


def needed(objects: list[dict[str, Any]]) -> Iterator[Right]:
    """Yield what deploying objects takes."""
    for item in objects:
        group = item["apiVersion"].rpartition("/")[0]
        verbs = ("get", "patch") if item["kind"] == "Namespace" else WRITTEN
        yield from ((group, resource_of(item["kind"]), verb) for verb in verbs)
        # Kubernetes lets nobody grant what he does not hold.
        if item["kind"] == "Role":
            yield from rights(item["rules"])
            yield group, "roles", "bind"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_deployer_has_a_problem(name: str) -> None:
    """The rules of the overlays find nothing in what is applied before them, its namespace above all."""
    assert [text for rule in RULES for text in texts(rule, overlay(f"deployer/{name}"))] == []


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_it_has_the_rights_for_all_that_is_rendered(name: str) -> None:
    """A component with a new kind needs a line in k8s/deployer/base/deployer.yaml."""
    missing = set(needed(rendered.load(name))) - rights(of_kind(name, "Role")["rules"])
    assert sorted(missing) == []


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_it_has_no_other_right(name: str) -> None:
    """What is no longer rendered is no longer allowed, and Secrets never were."""
    tool = {(*resource, verb) for resource, verbs in OF_THE_TOOL.items() for verb in verbs}
    extra = rights(of_kind(name, "Role")["rules"]) - set(needed(rendered.load(name))) - tool
    assert sorted(extra) == []
    assert not any("secrets" in right or "*" in right for right in rights(of_kind(name, "Role")["rules"]))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_it_binds_the_roles_that_are_rendered(name: str) -> None:
    """They have no right that it has not; any other one would be somebody else's."""
    roles = [item["metadata"]["name"] for item in rendered.load(name) if item["kind"] == "Role"]
    [rule] = [each for each in of_kind(name, "Role")["rules"] if "bind" in each["verbs"]]
    assert (rule["resources"], rule["resourceNames"]) == (["roles"], roles)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_it_reads_one_object_of_the_cluster(name: str) -> None:
    """The uid of kube-system tells which cluster it is."""
    [rule] = of_kind(name, "ClusterRole")["rules"]
    assert rule == {
        "apiGroups": [""],
        "resources": ["namespaces"],
        "resourceNames": ["kube-system"],
        "verbs": ["get"],
    }


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_it_is_in_the_namespace_of_its_overlay(name: str) -> None:
    """So is who has the rights; neither environment's account may do anything in the other one."""
    [namespace] = {item["metadata"]["name"] for item in rendered.load(name) if item["kind"] == "Namespace"}
    account = of_kind(name, "ServiceAccount")["metadata"]
    assert account["namespace"] == of_kind(name, "Role")["metadata"]["namespace"] == namespace
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        binding = of_kind(name, kind)
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": namespace}
        ]
    others = {of_kind(other, "ClusterRoleBinding")["metadata"]["name"] for other in ENVIRONMENTS}
    assert len(others) == len(ENVIRONMENTS)
