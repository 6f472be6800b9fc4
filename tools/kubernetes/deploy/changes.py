"""What a deployment changes in the cluster, and the cluster's objects that it no longer has."""

import re
from dataclasses import dataclass, field

from tools.kubernetes.deploy.difference import show_difference
from tools.kubernetes.deploy.foreign import foreign_fields
from tools.kubernetes.deploy.kubectl import Kubectl
from tools.kubernetes.deploy.live import find, namespace_of
from tools.kubernetes.deploy.manifests import SET_LABEL, Manifests, Object, name_of, to_yaml
from tools.kubernetes.deploy.record import Record, rendered


@dataclass(frozen=True)
class Changes:
    """What differs between the cluster and the manifests."""

    summary: list[str]
    """A line for each object: + is new, ~ changes, - is removed, * is a Job that runs."""

    diff: str
    """As `kubectl diff` shows it."""

    notes: list[str] = field(default_factory=list)
    """What else somebody should know before."""


def find_changes(kubectl: Kubectl, manifests: Manifests) -> Changes:
    """Compare the manifests with the cluster.

    Raises:
        KubectlError: the cluster can't tell.

    """
    if not find(kubectl, namespace_of(manifests.namespace)):
        # The cluster compares nothing in a namespace that it does not have. kubectl would mask Secrets.
        shown = [item for item in manifests.objects if item["kind"] != "Secret"]
        return Changes([f"+ {name_of(item)}" for item in manifests.objects], to_yaml(shown))
    # A Job can't be changed and is made anew: there is nothing to compare.
    jobs = manifests.of_kind("Job")
    diff = show_difference(kubectl, [item for item in manifests.objects if item not in jobs])
    changed = re.split(r"^diff .*\n", diff, flags=re.MULTILINE)[1:]
    summary = [f"{'+' if '@@ -0,0 ' in each else '~'} {_object_of(each)}" for each in changed]
    record = Record(kubectl, manifests)
    recorded = record.read()
    summary += [f"- {name_of(item)}" for item in record.find_obsolete(recorded)]
    notes = [line for item in manifests.of_kind("Deployment") for line in foreign_fields(kubectl, item)]
    notes += _notes(kubectl, manifests) if recorded is None else []
    return Changes(summary + [f"* {name_of(item)}" for item in jobs], diff, notes)


def find_obsolete(kubectl: Kubectl, manifests: Manifests) -> list[Object]:
    """Return what was deployed once and is no longer rendered."""
    record = Record(kubectl, manifests)
    return record.find_obsolete(record.read())


def find_deployed(kubectl: Kubectl, manifests: Manifests) -> list[Object]:
    """Return all objects of the namespace that were deployed from here, but for the volumes' claims."""
    record = Record(kubectl, manifests)
    return record.find((record.read() or set()) | rendered(manifests)) + record.find_own()


def _notes(kubectl: Kubectl, manifests: Manifests) -> list[str]:
    """Return what can't be known of a version that was deployed before there was a record."""
    deployment = find(kubectl, manifests.of_kind("Deployment")[0])
    if not deployment or SET_LABEL not in deployment["metadata"].get("labels", {}):
        return []
    command = f"kubectl --namespace={manifests.namespace} get configmaps,services,..."
    return [
        (
            f"ConfigMap/{manifests.name}-deployed is not there: what an earlier version deployed and this one"
            f" does not have stays. To find it: {command} --selector={SET_LABEL}={manifests.name}"
        )
    ]


def _object_of(section: str) -> str:
    """Return the object of a file that kubectl called GROUP.VERSION.KIND.NAMESPACE.NAME."""
    file = section.splitlines()[1].split("\t")[0].rpartition("/")[2]
    match = re.match(r"(?:[a-z0-9.]+\.)?v[0-9a-z]+\.([A-Z]\w*)\.[^.]*\.(.+)$", file)
    return "/".join(match.groups()) if match else file
