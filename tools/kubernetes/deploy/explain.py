"""Why a workload is not done: its own state, its pods' with their last logs, and the warnings about them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import click

from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find, is_true, new_replica_set, owned_by
from tools.kubernetes.deploy.manifests import Object, name_of
from tools.kubernetes.deploy.text import printable

_LOG_LINES = 20

_PATIENCE = 10
"""Seconds: a rollback must not wait for what is only told."""

_BAD_WHEN_TRUE = {"Failed", "ReplicaFailure"}
"""Conditions of Jobs and Deployments; the others are bad when they are false."""


@dataclass(frozen=True)
class Explainer:
    """Tells of a namespace's workloads what happened since the deployment began."""

    kubectl: Kubectl
    namespace: str

    seen: set[tuple[str, str]] = field(default_factory=set)
    """Events from before, by uid and resourceVersion: an event that happens again is a new one.

    Not by time: the clocks of this machine and of the cluster's nodes may differ.
    """

    @classmethod
    def begin(cls, kubectl: Kubectl, namespace: str) -> Explainer:
        """Remember the events that there are now."""
        explainer = cls(replace(kubectl, patience=min(kubectl.patience, _PATIENCE)), namespace)
        # Who may not read events may deploy; it is said where they would be shown.
        with suppress(KubectlError):
            explainer.seen.update(_version(event) for event in explainer._events())
        return explainer

    def explain(self, workload: Object) -> None:
        """Print why a workload is not done."""
        try:
            if not (live := find(self.kubectl, workload)):
                click.secho(f"{name_of(workload)} is not there", fg="red", err=True)
                return
            owners = [live, *self._replica_sets(live)]
            for item in owners:
                self._tell(item)
            for pod in self._unready(owners[-1])[:3]:
                self._tell(pod)
                for container in _unready_containers(pod):
                    for line in self._logs(pod, container):
                        click.echo(printable(f"    {container}: {line}"), err=True)
        except KubectlError as error:
            # Who may not read events may deploy, and roll back, all the same.
            click.echo(f"    {error}", err=True)

    def warnings(self, item: Object) -> list[str]:
        """Return the warnings about one object of the cluster since the deployment began."""
        uid = item["metadata"]["uid"]
        return [
            printable(f"{event.get('reason')}: {event.get('message')}")
            for event in self._events(f"--field-selector=type=Warning,involvedObject.uid={uid}")
            if _version(event) not in self.seen
        ]

    def _tell(self, item: Object) -> None:
        reasons = ", ".join(dict.fromkeys(_reasons(item)))
        warnings = self.warnings(item)
        if item["kind"] != "ReplicaSet" or reasons or warnings:
            text = printable(f"{name_of(item)}: {reasons or 'not ready'}")
            click.secho(text, fg="red", err=True)
        for line in warnings:
            click.echo(f"    {line}", err=True)

    def _replica_sets(self, live: Object) -> list[Object]:
        new = new_replica_set(self.kubectl, live) if live["kind"] == "Deployment" else None
        return [new] if new else []

    def _unready(self, owner: Object) -> list[Object]:
        pods = owned_by(self.kubectl, owner, "pods") if owner["kind"] != "Deployment" else []
        pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)
        return [pod for pod in pods if not is_true(pod, "Ready")]

    def _events(self, *options: str) -> list[Object]:
        return self.kubectl.objects("events", f"--namespace={self.namespace}", *options)

    def _logs(self, pod: Object, container: str) -> Iterator[str]:
        """Yield the last lines of a container that ended, or else of the one that runs."""
        name, where = f"Pod/{pod['metadata']['name']}", f"--namespace={self.namespace}"
        command = ["logs", name, where, f"--container={container}", f"--tail={_LOG_LINES}"]
        at_once = replace(self.kubectl, patience=0)  # a node that is down stays so
        _, output, _ = at_once.run(*command, "--previous")
        if not output:
            _, output, error = at_once.run(*command)
            output = output or f"no logs{f' ({error})' if error else ''}"
        yield from output.splitlines()


def _version(event: Object) -> tuple[str, str]:
    return event["metadata"]["uid"], event["metadata"]["resourceVersion"]


def _containers(pod: Object) -> list[Object]:
    """Return the states of a pod's containers, also of those before it that have not done their work."""
    status = pod.get("status", {})
    before = [each for each in status.get("initContainerStatuses", []) if not each.get("ready")]
    return [*before, *status.get("containerStatuses", [])]


def _unready_containers(pod: Object) -> list[str]:
    """Return the names of those that keep a pod from being ready: a sidecar beside them tells nothing."""
    return [each["name"] for each in _containers(pod) if not each.get("ready")]


def _reasons(item: Object) -> Iterator[str]:
    status = item.get("status", {})
    for container in _containers(item):
        for state in (container.get("state", {}), container.get("lastState", {})):
            for detail in (state.get("waiting"), state.get("terminated")):
                if detail:
                    words = (str(detail[key]) for key in ("reason", "exitCode", "message") if detail.get(key))
                    yield f"{container['name']}: {' '.join(words)}"
    for condition in status.get("conditions", []):
        is_bad = condition["status"] == ("True" if condition["type"] in _BAD_WHEN_TRUE else "False")
        if is_bad and condition.get("message"):
            yield condition["message"]
