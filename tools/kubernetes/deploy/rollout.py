"""Waiting for Deployments."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from tools.kubernetes.deploy.guards import RefusedError
from tools.kubernetes.deploy.kubectl import Kubectl
from tools.kubernetes.deploy.live import condition, find, owned_by, set_by
from tools.kubernetes.deploy.manifests import Manifests, Object, name_of
from tools.kubernetes.deploy.text import printable

INTERVAL = 1
"""Seconds between two questions how far it is."""

_PATIENCE_FOR_PODS = 90
"""Seconds for which pods may be refused, say by a quota that the old pods still fill while they end."""


class FailedError(click.ClickException):
    """The new version did not come up; why was printed already."""


class HeldError(click.ClickException):
    """Somebody paused or deleted a Deployment that is rolled out; it was left as it is."""


@dataclass
class Refusals:
    """Why no pod can be made, which Kubernetes tries again and again."""

    since: float | None = None
    told: set[str] = field(default_factory=set)

    def note(self, name: str, reason: str) -> None:
        """Print why no pod can be made now; an empty reason says that they can be."""
        if not reason:
            self.since = None
            return
        self.since = self.since or time.monotonic()
        if reason not in self.told:
            self.told.add(reason)
            click.secho(printable(f"{name}: {reason}"), fg="yellow", err=True)

    def have_lasted(self) -> bool:
        """Return whether there is no hope left."""
        return self.since is not None and time.monotonic() > self.since + _PATIENCE_FOR_PODS


def wait_for_deployment(kubectl: Kubectl, deployment: Object, timeout: float) -> None:
    """Wait until all pods of a Deployment are new ones and available, and print how far it is.

    Raises:
        FailedError: they are not within `timeout` seconds or the Deployment's progressDeadlineSeconds, or
            pods were refused for too long.
        HeldError: somebody paused or deleted it.

    """
    deadline = time.monotonic() + timeout
    told, refusals = "", Refusals()
    while progress := _progress(live := _find_unheld(kubectl, deployment)):
        if progress != told:
            told = progress
            click.echo(f"Waiting for {name_of(deployment)}: {progress} ...")
        refusals.note(name_of(deployment), _refusal(live))
        if _is_late(live) or refusals.have_lasted() or time.monotonic() > deadline:
            raise FailedError(f"{name_of(deployment)} was not rolled out")
        time.sleep(INTERVAL)


def check_not_paused(manifests: Manifests) -> None:
    """Refuse an overlay whose Deployment would never begin to roll out."""
    for item in manifests.of_kind("Deployment"):
        if item["spec"].get("paused"):
            raise RefusedError(
                f"{name_of(item)} has spec.paused: true, with which no new pod is ever made: take it out"
            )


def serving(kubectl: Kubectl, live: Object | None) -> Object | None:
    """Return that ReplicaSet of a live Deployment which has the most pods that are ready now, if any is."""
    sets = owned_by(kubectl, live, "replicasets") if live else []
    ready = [item for item in sets if item["status"].get("readyReplicas")]
    return max(ready, key=lambda item: item["status"]["readyReplicas"], default=None)


def paused_by(live: Object) -> str:
    """Return who paused a Deployment and when, as its managed fields tell, or nothing if it is not paused."""
    return set_by(live, "spec", "paused") if live["spec"].get("paused") else ""


def pauses(kubectl: Kubectl, manifests: Manifests) -> Iterator[str]:
    """Yield which Deployments are paused now and will be resumed."""
    for item in manifests.of_kind("Deployment"):
        if (live := find(kubectl, item)) and (who := paused_by(live)):
            yield f"{name_of(item)} is paused, by {who}, and will be resumed"


def _find_unheld(kubectl: Kubectl, deployment: Object) -> Object:
    live = find(kubectl, deployment)
    if not live:
        raise HeldError(f"{name_of(deployment)} was deleted meanwhile. Deploy again to make it anew")
    if "deletionTimestamp" in live["metadata"]:
        finalizers = ", ".join(live["metadata"].get("finalizers", []))
        raise HeldError(printable(f"{name_of(deployment)} is being deleted (its finalizers: {finalizers})"))
    if who := paused_by(live):
        raise HeldError(
            f"{name_of(deployment)} was paused meanwhile by {who}, and nothing was rolled back:"
            " `kubectl rollout resume` lets it go on, and so does deploying again"
        )
    return live


def _progress(live: Object) -> str:
    """Return how far a rollout is, or nothing once it is done, by the conditions of `kubectl rollout`."""
    wanted = live["spec"]["replicas"]
    status = live.get("status", {})
    have, updated, available = (
        status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")
    )
    if status.get("observedGeneration", 0) < live["metadata"]["generation"]:
        return "it has not been looked at yet"
    if updated < wanted:
        return f"{updated} of {wanted} pods are new"
    if have > updated:
        return f"{have - updated} old pods have to end"
    return f"{available} of {updated} new pods are available" if available < updated else ""


def _is_late(live: Object) -> bool:
    is_current = live.get("status", {}).get("observedGeneration", 0) >= live["metadata"]["generation"]
    return is_current and condition(live, "Progressing").get("reason") == "ProgressDeadlineExceeded"


def _refusal(live: Object) -> str:
    failure = condition(live, "ReplicaFailure")
    return str(failure.get("message", failure.get("reason"))) if failure.get("status") == "True" else ""
