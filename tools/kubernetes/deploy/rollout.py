"""Waiting for Jobs and Deployments, and saying why they failed."""

import json
import time
from collections.abc import Iterator

import click

from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.manifests import Object, name_of

_LOG_LINES = 20

_BAD_WHEN_TRUE = {"Failed", "ReplicaFailure"}
"""Conditions of Jobs and Deployments; the others are bad when they are false."""


class FailedError(click.ClickException):
    """The new version did not come up; why was printed already."""


def wait_for_job(kubectl: Kubectl, job: Object, timeout: float) -> None:
    """Wait until a Job has completed.

    Args:
        kubectl: for the Job's cluster.
        job: its manifest.
        timeout: seconds.

    Raises:
        FailedError: it failed, or was not done in time.

    """
    deadline = time.monotonic() + timeout
    told = 0
    while (state := _state(status := _status(kubectl, job))) != "Complete":
        if state == "Failed" or time.monotonic() > deadline:
            explain(kubectl, job)
            raise FailedError(f"{name_of(job)} {'failed' if state else f'was not done after {timeout:g} s'}")
        if (failed := status.get("failed", 0)) > told:
            told = failed
            click.echo(f"{name_of(job)}: {failed} of its pods failed; another will try")
        time.sleep(1)


def wait_for_deployment(kubectl: Kubectl, deployment: Object, timeout: float) -> None:
    """Wait until all pods of a Deployment are new ones and available, while kubectl shows how far it is.

    Raises:
        FailedError: they are not within `timeout` seconds or the Deployment's progressDeadlineSeconds.

    """
    where = f"--namespace={deployment['metadata']['namespace']}"
    if kubectl.show("rollout", "status", name_of(deployment), where, f"--timeout={timeout:g}s"):
        explain(kubectl, deployment)
        raise FailedError(f"{name_of(deployment)} was not rolled out")


def serving(kubectl: Kubectl, deployment: Object) -> Object | None:
    """Return that ReplicaSet of a Deployment which has the most pods that are ready now, if any is."""
    name, namespace = (deployment["metadata"][key] for key in ("name", "namespace"))
    ready = [
        item
        for item in kubectl.objects("replicasets", f"--namespace={namespace}")
        if item["status"].get("readyReplicas")
        and any(owner["name"] == name for owner in item["metadata"].get("ownerReferences", []))
    ]
    return max(ready, key=lambda item: item["status"]["readyReplicas"], default=None)


def explain(kubectl: Kubectl, workload: Object) -> None:
    """Print why a workload is not done: its own state, and that of its pods with their last logs."""
    try:
        _explain(kubectl, workload["kind"], *_live(kubectl, workload))
        for pod in _unready(kubectl, workload)[:3]:
            _explain(kubectl, "Pod", pod)
            for container in _unready_containers(pod):
                for line in _logs(kubectl, pod, container):
                    click.echo(f"    {container}: {line}", err=True)
    except KubectlError as error:
        # Who may not read events may deploy, and roll back, all the same.
        click.echo(f"    {error}", err=True)


def _explain(kubectl: Kubectl, kind: str, *items: Object) -> None:
    for item in items:
        reasons = ", ".join(_reasons(item)) or "not ready"
        click.secho(f"{kind}/{item['metadata']['name']}: {reasons}", fg="red", err=True)
        for line in _warnings(kubectl, kind, item):
            click.echo(f"    {line}", err=True)


def _live(kubectl: Kubectl, workload: Object) -> list[Object]:
    metadata = workload["metadata"]
    selector = f"--field-selector=metadata.name={metadata['name']}"
    return kubectl.objects(workload["kind"], f"--namespace={metadata['namespace']}", selector)


def _status(kubectl: Kubectl, job: Object) -> Object:
    where = f"--namespace={job['metadata']['namespace']}"
    status: Object = json.loads(kubectl.read("get", name_of(job), where, "--output=json"))["status"]
    return status


def _state(status: Object) -> str:
    conditions = {each["type"] for each in status.get("conditions", []) if each["status"] == "True"}
    return next((state for state in ("Complete", "Failed") if state in conditions), "")


def _unready(kubectl: Kubectl, workload: Object) -> list[Object]:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    where = f"--namespace={workload['metadata']['namespace']}"
    pods = kubectl.objects("pods", where, f"--selector={selector}", "--sort-by=.metadata.creationTimestamp")
    return [pod for pod in reversed(pods) if not _is_ready(pod)]


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _reasons(pod: Object) -> Iterator[str]:
    status = pod.get("status", {})
    for container in _containers(pod):
        for state in (container.get("state", {}), container.get("lastState", {})):
            for detail in (state.get("waiting"), state.get("terminated")):
                if detail:
                    words = (str(detail[key]) for key in ("reason", "exitCode", "message") if detail.get(key))
                    yield f"{container['name']}: {' '.join(words)}"
    for condition in status.get("conditions", []):
        is_bad = condition["status"] == ("True" if condition["type"] in _BAD_WHEN_TRUE else "False")
        if is_bad and condition.get("message"):
            yield condition["message"]


def _warnings(kubectl: Kubectl, kind: str, item: Object) -> Iterator[str]:
    about = f"type=Warning,involvedObject.kind={kind},involvedObject.name={item['metadata']['name']}"
    where = f"--namespace={item['metadata']['namespace']}"
    for event in kubectl.objects("events", where, f"--field-selector={about}"):
        yield f"{event.get('reason')}: {event.get('message')}"


def _containers(pod: Object) -> list[Object]:
    """Return the states of a pod's containers, also of those before it that have not done their work."""
    status = pod.get("status", {})
    before = [each for each in status.get("initContainerStatuses", []) if not each.get("ready")]
    return [*before, *status.get("containerStatuses", [])]


def _unready_containers(pod: Object) -> list[str]:
    """Return the names of those that keep a pod from being ready: a sidecar beside them tells nothing."""
    return [each["name"] for each in _containers(pod) if not each.get("ready")]


def _logs(kubectl: Kubectl, pod: Object, container: str) -> Iterator[str]:
    """Yield the last lines of a container that ended, or else of the one that runs."""
    name, where = f"Pod/{pod['metadata']['name']}", f"--namespace={pod['metadata']['namespace']}"
    command = ["logs", name, where, f"--container={container}", f"--tail={_LOG_LINES}"]
    _, output, _ = kubectl.run(*command, "--previous")
    if not output:
        _, output, error = kubectl.run(*command)
        output = output or f"no logs{f' ({error})' if error else ''}"
    yield from output.splitlines()
