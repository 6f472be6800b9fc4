"""What a deployment changes in the cluster, and the cluster's objects that it no longer has."""

import re
from dataclasses import dataclass

from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.manifests import SET_LABEL, Manifests, Object, name_of, to_yaml

MANAGER = "grpc-on-kubernetes"
"""The owner of the fields that are rendered."""

SERVER_SIDE = ("--server-side", f"--field-manager={MANAGER}", "--force-conflicts")
"""What is rendered holds over `kubectl edit` and `rollout undo`; fields that it does not have stay theirs."""

_MADE_FROM_LABELS = {"Endpoints", "Event"}
"""Kubernetes makes these with a Service's labels, and they have no owner that would tell."""

_DATA = {"PersistentVolumeClaim"}
"""What goes with its namespace only."""


@dataclass(frozen=True)
class Changes:
    """What differs between the cluster and the manifests."""

    summary: list[str]
    """A line for each object: + is new, ~ changes, - is removed, * is a Job that runs."""

    diff: str
    """As `kubectl diff` shows it."""


def find_changes(kubectl: Kubectl, manifests: Manifests) -> Changes:
    """Compare the manifests with the cluster.

    Raises:
        KubectlError: the cluster can't tell.

    """
    if not kubectl.objects("namespaces", f"--field-selector=metadata.name={manifests.namespace}"):
        # The cluster compares nothing in a namespace that it does not have. kubectl would mask Secrets.
        shown = [item for item in manifests.objects if item["kind"] != "Secret"]
        return Changes([f"+ {name_of(item)}" for item in manifests.objects], to_yaml(shown))
    # A Job can't be changed and is made anew: there is nothing to compare.
    jobs = manifests.of_kind("Job")
    diff = show_difference(kubectl, [item for item in manifests.objects if item not in jobs])
    changed = re.split(r"^diff .*\n", diff, flags=re.MULTILINE)[1:]
    summary = [f"{'+' if '@@ -0,0 ' in each else '~'} {_object_of(each)}" for each in changed]
    summary += [f"- {name_of(item)}" for item in find_obsolete(kubectl, manifests)]
    return Changes(summary + [f"* {name_of(item)}" for item in jobs], diff)


def show_difference(kubectl: Kubectl, objects: list[Object]) -> str:
    """Return what `kubectl diff` prints: nothing where the cluster has the objects as they are.

    Raises:
        KubectlError: the cluster can't tell.

    """
    command = ["diff", *SERVER_SIDE, "--filename=-"]
    code, output, error = kubectl.run(*command, stdin=to_yaml(objects))
    if code > 1:  # 1 says that there is a difference
        raise KubectlError(error)
    return output


def find_obsolete(kubectl: Kubectl, manifests: Manifests) -> list[Object]:
    """Return what was deployed once and is no longer rendered."""
    rendered = {(item["kind"], item["metadata"]["name"]) for item in manifests.objects}
    deployed = find_deployed(kubectl, manifests)
    return [item for item in deployed if (item["kind"], item["metadata"]["name"]) not in rendered]


def find_deployed(kubectl: Kubectl, manifests: Manifests) -> list[Object]:
    """Return all objects of the namespace that were deployed from here, but for the volumes' claims."""
    # Where an extension of the API (metrics, say) does not answer, it fails and lists the other kinds.
    command = ["api-resources", "--namespaced", "--verbs=list,delete", "--output=name"]
    _, kinds, error = kubectl.run(*command)
    if not kinds:
        raise KubectlError(error)
    selector = f"--selector={SET_LABEL}={manifests.name}"
    found = kubectl.objects(",".join(kinds.split()), f"--namespace={manifests.namespace}", selector)
    return [
        item
        for item in found
        if item["kind"] not in _MADE_FROM_LABELS | _DATA and "ownerReferences" not in item["metadata"]
    ]


def _object_of(section: str) -> str:
    """Return the object of a file that kubectl called GROUP.VERSION.KIND.NAMESPACE.NAME."""
    file = section.splitlines()[1].split("\t")[0].rpartition("/")[2]
    match = re.match(r"(?:[a-z0-9.]+\.)?v[0-9a-z]+\.([A-Z]\w*)\.[^.]*\.(.+)$", file)
    return "/".join(match.groups()) if match else file
