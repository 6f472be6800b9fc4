"""What the cluster has of an object, and of what Kubernetes makes for it."""

import json
from collections.abc import Iterable, Iterator

from tools.kubernetes.deploy.kubectl import Kubectl
from tools.kubernetes.deploy.manifests import Object
from tools.kubernetes.deploy.text import printable

_REVISION = "deployment.kubernetes.io/revision"


def resource_of(item: Object) -> str:
    """Return an object's name as kubectl takes it, with the version and group that it was written for."""
    group, _, version = item["apiVersion"].rpartition("/")
    kind = f"{item['kind']}.{version}.{group}" if group else item["kind"]
    return f"{kind}/{item['metadata']['name']}"


def in_namespace(item: Object) -> list[str]:
    """Return kubectl's option for the namespace of an object, if it is in one."""
    namespace = item["metadata"].get("namespace")
    return [f"--namespace={namespace}"] if namespace else []


def namespace_of(name: str) -> Object:
    """Return what names a namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def find(kubectl: Kubectl, item: Object) -> Object | None:
    """Return an object as the cluster has it, with who manages its fields, or None.

    Raises:
        KubectlError: the cluster can't tell.

    """
    return get(kubectl, resource_of(item), *in_namespace(item), "--show-managed-fields")


def get(kubectl: Kubectl, resource: str, *options: str) -> Object | None:
    """Return the object that `kubectl get` finds, or None.

    Raises:
        KubectlError: the cluster can't tell.

    """
    output = kubectl.read("get", resource, *options, "--ignore-not-found", "--output=json")
    found: Object | None = json.loads(output) if output.strip() else None
    return found


def get_all(kubectl: Kubectl, resources: Iterable[str], *options: str) -> list[Object]:
    """Return those objects that `kubectl get` finds, in one request of it.

    Raises:
        KubectlError: the cluster can't tell of one of them.

    """
    if not (named := [*resources]):
        return []
    output = kubectl.read("get", *named, *options, "--ignore-not-found", "--output=json")
    if not output.strip():
        return []
    found = json.loads(output)
    return list(found["items"]) if len(named) > 1 else [found]


def condition(item: Object, name: str) -> Object:
    """Return a condition of an object's status; it is empty where there is none."""
    conditions: list[Object] = item.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == name), {})


def is_true(item: Object, name: str) -> bool:
    """Return whether an object has a condition, and its status is True."""
    return bool(condition(item, name).get("status") == "True")


def owned_by(kubectl: Kubectl, owner: Object, kind: str) -> list[Object]:
    """Return the objects of a kind that an object of the cluster owns."""
    uid = owner["metadata"]["uid"]
    return [
        item
        for item in kubectl.objects(kind, *in_namespace(owner))
        if any(each["uid"] == uid for each in item["metadata"].get("ownerReferences", []))
    ]


def new_replica_set(kubectl: Kubectl, deployment: Object) -> Object | None:
    """Return the ReplicaSet of a Deployment's newest pods."""
    revision = deployment["metadata"].get("annotations", {}).get(_REVISION)
    return next(
        (
            each
            for each in owned_by(kubectl, deployment, "replicasets")
            if each["metadata"].get("annotations", {}).get(_REVISION) == revision
        ),
        None,
    )


def managers_of(item: Object, *path: str) -> Iterator[Object]:
    """Yield the entries of metadata.managedFields that have a field, such as `"spec", "replicas"`."""
    for entry in item["metadata"].get("managedFields", []):
        node: Object | None = entry.get("fieldsV1", {})
        for key in path:
            node = node.get(f"f:{key}") if node is not None else None
        if node is not None:
            yield entry


def set_by(item: Object, *path: str) -> str:
    """Return who set a field and when, as managedFields tell, for a person to read."""
    managers = [f"{each['manager']} at {each.get('time')}" for each in managers_of(item, *path)]
    return printable(", ".join(managers) or "somebody")
