"""What a Job needs before it runs; all else is the running release's until the Job has ended."""

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tools.kubernetes.deploy.manifests import Object, is_built_in
from tools.kubernetes.labels import matches

type _Reference = tuple[str, str]
"""Kind and name."""

_NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "configMap": ("ConfigMap", ("name",)),
    "configMapRef": ("ConfigMap", ("name",)),
    "configMapKeyRef": ("ConfigMap", ("name",)),
    "secret": ("Secret", ("secretName", "name")),
    "secretRef": ("Secret", ("name",)),
    "secretKeyRef": ("Secret", ("name",)),
    "nodePublishSecretRef": ("Secret", ("name",)),
    "persistentVolumeClaim": ("PersistentVolumeClaim", ("claimName",)),
}
"""Fields of a pod that hold a reference, its kind, and where in it the name is."""

_NAMES = {
    "serviceAccountName": "ServiceAccount",
    "priorityClassName": "PriorityClass",
    "runtimeClassName": "RuntimeClass",
    "secretProviderClass": "SecretProviderClass",
    "resourceClaimTemplateName": "ResourceClaimTemplate",
    "serviceName": "Service",  # a StatefulSet's
    "storageClassName": "StorageClass",
    "volumeName": "PersistentVolume",
    "resourceClaimName": "ResourceClaim",
    "deviceClassName": "DeviceClass",
}
"""Fields that are the name of an object of that kind."""
_SERVICE = "kubernetes.io/service-name"
"""The label of an EndpointSlice that names its Service."""


def needed_by_jobs(objects: list[Object]) -> list[Object]:
    """Return what the Jobs of an overlay need, in the order of its objects.

    That is their namespace, and what their pods refer to: accounts with their rights, configuration,
    Secrets and what makes these, volumes, network policies, and Services that their configuration names,
    with the pods behind these. Never what has the Deployments' pods behind it: of a network policy for both
    there is a copy for the Job's pods alone, since the policy itself would reach the running release.
    """
    search = _Search(objects)
    search.add([item for item in objects if item["kind"] in ("Namespace", "Job")])
    return [item for item in objects if id(item) in search.found and item["kind"] != "Job"] + search.copies


class _Search:
    def __init__(self, objects: list[Object]) -> None:
        self.found: set[int] = set()
        self.copies: list[Object] = []
        self._objects = objects
        deployments = (item for item in objects if item["kind"] == "Deployment")
        self._serving = [_pod_labels(item) for item in deployments]

    def add(self, items: list[Object]) -> None:
        """Add objects, and all that they need."""
        for item in items:
            if id(item) not in self.found:
                self.found.add(id(item))
                shared = (other for other in self._objects if _lets(other, item) and self._is_shared(other))
                self.copies += [_for_pods_of(item, other) for other in shared]
                self.add(list(self._needs(item)))

    def _needs(self, item: Object) -> Iterator[Object]:
        references = set(_references(item))
        texts = list(_texts(item))
        for other in self._objects:
            reasons = (
                (other["kind"], other["metadata"]["name"]) in references,
                self._makes(other, references),
                _gives_rights(other, item),
                _stands_behind(other, item),
                _lets(other, item) and not self._is_shared(other),
                self._is_named(other, texts),
            )
            if any(reasons):
                yield other

    def _makes(self, other: Object, references: set[_Reference]) -> bool:
        """Return whether an object, such as an ExternalSecret, makes a Secret that is not rendered."""
        if is_built_in(other):
            return False
        rendered = {item["metadata"]["name"] for item in self._objects if item["kind"] == "Secret"}
        secrets = {name for kind, name in references if kind == "Secret"} - rendered
        return bool(secrets & {other["metadata"]["name"], *_texts(other.get("spec", {}))})

    def _is_shared(self, policy: Object) -> bool:
        return any(matches(policy["spec"].get("podSelector", {}), labels) for labels in self._serving)

    def _is_named(self, service: Object, texts: list[str]) -> bool:
        """Return whether a text has a Service as a host, and no Deployment is behind it."""
        if service["kind"] != "Service" or any(_selects(service, labels) for labels in self._serving):
            return False
        host = re.compile(rf"(?<![\w.-]){re.escape(service['metadata']['name'])}(?![\w-])")
        return any(host.search(text) for text in texts)


def _lets(policy: Object, item: Object) -> bool:
    """Return whether a network policy allows anything to an object's pods."""
    spec = policy.get("spec", {})
    allows = policy["kind"] == "NetworkPolicy" and (spec.get("ingress") or spec.get("egress"))
    labels = _pod_labels(item)
    return bool(allows and labels) and matches(spec.get("podSelector", {}), labels)


def _for_pods_of(item: Object, policy: Object) -> Object:
    """Return a network policy for an object's pods alone; it is pruned, since it is not rendered."""
    name = f"{policy['metadata']['name']}-for-{item['metadata']['name']}"
    spec = policy["spec"] | {"podSelector": {"matchLabels": _pod_labels(item)}}
    return policy | {"metadata": policy["metadata"] | {"name": name}, "spec": spec}


def _references(node: Any) -> Iterator[_Reference]:
    if isinstance(node, list):
        for each in node:
            yield from _references(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _reference(key, value)
            yield from _references(value)


def _reference(key: str, value: Any) -> Iterator[_Reference]:
    if key in _NAMED and isinstance(value, dict):
        kind, fields = _NAMED[key]
        yield from ((kind, value[field]) for field in fields if field in value)
    elif key in _NAMES and isinstance(value, str):
        yield _NAMES[key], value
    elif key in ("imagePullSecrets", "secrets") and isinstance(value, list):
        yield from (("Secret", each["name"]) for each in value if isinstance(each, dict) and "name" in each)
    elif key.endswith("Ref") and isinstance(value, dict) and {"kind", "name"} <= value.keys():
        yield value["kind"], value["name"]


def _texts(node: Any) -> Iterator[str]:
    """Yield all texts of an object; a Secret's are Base64."""
    if isinstance(node, dict) and node.get("kind") == "Secret":
        for value in node.get("data", {}).values():
            with suppress(binascii.Error):  # the API server will refuse it
                yield base64.b64decode(value).decode(errors="replace")
        yield from node.get("stringData", {}).values()
    elif isinstance(node, dict):
        for key, value in node.items():
            if key != "metadata":
                yield from _texts(value)
    elif isinstance(node, list):
        for each in node:
            yield from _texts(each)
    elif isinstance(node, str):
        yield node


def _gives_rights(binding: Object, account: Object) -> bool:
    """Return whether a RoleBinding or ClusterRoleBinding is a ServiceAccount's."""
    if not binding["kind"].endswith("RoleBinding") or account["kind"] != "ServiceAccount":
        return False
    name = account["metadata"]["name"]
    subjects = binding.get("subjects", [])
    return any(each["kind"] == "ServiceAccount" and each["name"] == name for each in subjects)


def _pod_labels(workload: Object) -> dict[str, str]:
    template = workload.get("spec", {}).get("template", {})
    labels: dict[str, str] = template.get("metadata", {}).get("labels", {})
    return labels


def _stands_behind(workload: Object, service: Object) -> bool:
    """Return whether a Service leads to an object's pods, or without a selector to its addresses."""
    if service["kind"] == "Service" and not service.get("spec", {}).get("selector"):
        labels = workload["metadata"].get("labels", {})
        names = {"Endpoints": workload["metadata"]["name"], "EndpointSlice": labels.get(_SERVICE)}
        return bool(names.get(workload["kind"]) == service["metadata"]["name"])
    is_pair = workload["kind"] == "StatefulSet" and service["kind"] == "Service"
    return is_pair and _selects(service, _pod_labels(workload))


def _selects(service: Object, labels: dict[str, str]) -> bool:
    selector = service["spec"].get("selector")
    return bool(selector) and matches({"matchLabels": selector}, labels)
