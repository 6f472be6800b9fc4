from typing import Any

import pytest

from tools.kubernetes.deploy.manifests import Object
from tools.kubernetes.deploy.needs import needed_by_jobs

SERVER, MIGRATION = {"app": "server", "part-of": "app"}, {"app": "migrate", "part-of": "app"}


def thing(kind: str, name: str, version: str = "v1", **more: Any) -> Object:
    """Return an object."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **more}


def workload(kind: str, labels: dict[str, str], **pod: Any) -> Object:
    """Return what makes pods."""
    template = {"metadata": {"labels": labels}, "spec": pod}
    return thing(kind, labels["app"], "apps/v1", spec={"template": template})


def needed(*objects: Object, **pod: Any) -> set[str]:
    """Return the names of what a Job with such pods needs of objects, beside a Deployment."""
    rendered = [*objects, workload("Deployment", SERVER), workload("Job", MIGRATION, **pod)]
    return {item["metadata"]["name"] for item in needed_by_jobs(rendered)}


def policy(name: str, selector: Object, **rules: Any) -> Object:
    """Return a network policy."""
    spec = {"podSelector": selector, **rules}
    return thing("NetworkPolicy", name, "networking.k8s.io/v1", spec=spec)


@pytest.mark.parametrize(
    ("kind", "pod"),
    [
        ("ServiceAccount", {"serviceAccountName": "a"}),
        ("PriorityClass", {"priorityClassName": "a"}),
        ("ConfigMap", {"containers": [{"envFrom": [{"configMapRef": {"name": "a"}}]}]}),
        ("ConfigMap", {"volumes": [{"configMap": {"name": "a"}}]}),
        ("ConfigMap", {"volumes": [{"projected": {"sources": [{"configMap": {"name": "a"}}]}}]}),
        ("Secret", {"volumes": [{"secret": {"secretName": "a"}}]}),
        ("Secret", {"volumes": [{"projected": {"sources": [{"secret": {"name": "a"}}]}}]}),
        (
            "Secret",
            {"initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "a", "key": "k"}}}]}]},
        ),
        ("Secret", {"imagePullSecrets": [{"name": "a"}]}),
        ("PersistentVolumeClaim", {"volumes": [{"persistentVolumeClaim": {"claimName": "a"}}]}),
        ("SecretProviderClass", {"volumes": [{"csi": {"volumeAttributes": {"secretProviderClass": "a"}}}]}),
    ],
)
def test_what_a_pod_refers_to_comes_first(kind: str, pod: dict[str, Any]) -> None:
    """By kind and name: what has another name, or is of another kind, does not."""
    assert needed(thing(kind, "a"), thing(kind, "b"), thing("Deployment", "a", spec={}), **pod) == {"a"}
    assert needed(thing("Middleware", "a"), **pod) == set()


def test_the_rights_of_the_account_come_first() -> None:
    """Its bindings, and the roles of these."""
    subject = {"kind": "ServiceAccount", "name": "a"}
    objects = [
        thing("ServiceAccount", "a"),
        thing("RoleBinding", "binding", subjects=[subject], roleRef={"kind": "Role", "name": "role"}),
        thing("Role", "role"),
        thing(
            "RoleBinding", "others", subjects=[subject | {"name": "b"}], roleRef={"kind": "Role", "name": "x"}
        ),
    ]
    assert needed(*objects, serviceAccountName="a") == {"a", "binding", "role"}


def test_what_makes_a_secret_comes_first() -> None:
    """An operator's object that names it, and the store or issuer which that one names."""
    store = {"kind": "SecretStore", "name": "store"}
    objects = [
        thing(
            "ExternalSecret",
            "e",
            "external-secrets.io/v1",
            spec={"target": {"name": "s"}, "secretStoreRef": store},
        ),
        thing("SecretStore", "store", "external-secrets.io/v1"),
        thing("SealedSecret", "s", "bitnami.com/v1alpha1", spec={}),
        thing("Certificate", "edge", "cert-manager.io/v1", spec={"secretName": "edge-tls"}),
    ]
    assert needed(*objects, volumes=[{"secret": {"secretName": "s"}}]) == {"e", "store", "s"}


def test_the_database_that_is_deployed_too_comes_first() -> None:
    """A Service that the configuration has as a host, what is behind it, and what lets it be reached."""
    database = {"app": "db"}
    objects = [
        thing("Secret", "s", stringData={"url": "postgresql://user@db/users"}),
        thing("Service", "db", spec={"selector": database}),
        thing("Service", "db-2", spec={"selector": database}),
        workload("StatefulSet", database, volumes=[{"configMap": {"name": "db-config"}}]),
        thing("ConfigMap", "db-config", data={"key": "talks to server"}),
        thing("Service", "server", spec={"selector": {"app": "server"}}),
        policy("to-db", {"matchLabels": database}, ingress=[{}]),
    ]
    pod = {"containers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}
    assert needed(*objects, **pod) == {"s", "db", "db-config", "to-db"}


def test_a_database_outside_the_cluster_comes_first() -> None:
    """A Service without a selector leads to addresses that are written by hand."""
    objects = [
        thing("Service", "db", spec={"ports": [{"port": 5432}]}),
        thing("Endpoints", "db", subsets=[]),
        thing("EndpointSlice", "db-1", "discovery.k8s.io/v1"),
        thing("EndpointSlice", "server-1", "discovery.k8s.io/v1"),
    ]
    for item, service in zip(objects[2:], ("db", "server"), strict=True):
        item["metadata"]["labels"] = {"kubernetes.io/service-name": service}
    assert needed(*objects, containers=[{"env": [{"name": "HOST", "value": "db"}]}]) == {"db", "db-1"}


def test_the_volume_of_a_claim_comes_first() -> None:
    """And its class."""
    spec = {"storageClassName": "fast", "volumeName": "disk"}
    objects = [
        thing("PersistentVolumeClaim", "claim", spec=spec),
        thing("PersistentVolume", "disk", spec={}),
        thing("StorageClass", "fast", "storage.k8s.io/v1"),
        thing("StorageClass", "slow", "storage.k8s.io/v1"),
    ]
    volumes = [{"persistentVolumeClaim": {"claimName": "claim"}}]
    assert needed(*objects, volumes=volumes) == {"claim", "disk", "fast"}


@pytest.mark.parametrize(
    ("selector", "name"),
    [
        ({"matchLabels": {"app": "migrate"}}, "p"),
        ({"matchLabels": {"app": "server"}}, None),
        ({"matchLabels": {"part-of": "app"}}, "p-for-migrate"),
        ({}, "p-for-migrate"),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["migrate"]}]}, "p"),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["server"]}]}, "p"),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, "p-for-migrate"),
        ({"matchExpressions": [{"key": "other", "operator": "DoesNotExist"}]}, "p-for-migrate"),
    ],
)
def test_a_policy_of_the_servers_is_not_changed_early(selector: Object, name: str | None) -> None:
    """The migration's own comes first, and of one that the servers share a copy for the migration alone."""
    rendered = [
        policy("p", selector, egress=[{}]),
        workload("Deployment", SERVER),
        workload("Job", MIGRATION),
    ]
    found = needed_by_jobs(rendered)
    assert [item["metadata"]["name"] for item in found] == ([name] if name else [])
    if name == "p-for-migrate":
        assert found[0]["spec"] == {"podSelector": {"matchLabels": MIGRATION}, "egress": [{}]}


def test_a_policy_that_allows_nothing_is_not_needed() -> None:
    """A namespace is closed only after the migration, with what is open in it."""
    assert needed(policy("deny", {}, policyTypes=["Ingress", "Egress"])) == set()
