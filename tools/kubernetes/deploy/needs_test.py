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


def needed(*objects: Object, is_new: bool = True, **pod: Any) -> set[str]:
    """Return the names of what a Job with such pods needs of objects, beside a Deployment."""
    rendered = [*objects, workload("Deployment", SERVER), workload("Job", MIGRATION, **pod)]
    return {item["metadata"]["name"] for item in needed_by_jobs(rendered, lambda _: is_new)}


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


@pytest.mark.parametrize(
    ("selector", "is_new", "is_needed"),
    [
        ({"matchLabels": {"app": "migrate"}}, False, True),
        ({"matchLabels": {"app": "server"}}, True, False),
        ({"matchLabels": {"part-of": "app"}}, True, True),
        ({"matchLabels": {"part-of": "app"}}, False, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["migrate"]}]}, False, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["server"]}]}, False, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, False, False),
        ({"matchExpressions": [{"key": "other", "operator": "DoesNotExist"}]}, False, False),
    ],
)
def test_a_policy_of_the_servers_is_not_changed_early(
    selector: Object, *, is_new: bool, is_needed: bool
) -> None:
    """The migration's own comes first; one that the servers share only where it is new."""
    shown = needed(policy("p", selector, egress=[{}]), is_new=is_new)
    assert shown == ({"p"} if is_needed else set())


def test_a_policy_that_allows_nothing_is_not_needed() -> None:
    """A namespace is closed only after the migration, with what is open in it."""
    assert needed(policy("deny", {}, policyTypes=["Ingress", "Egress"])) == set()
