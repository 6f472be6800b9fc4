"""Running the Jobs of a deployment, each as its own and nobody else's."""

import json
import secrets
import time

import click

from tools.kubernetes.deploy.explain import Explainer
from tools.kubernetes.deploy.guards import RefusedError
from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find, in_namespace, is_true, set_by
from tools.kubernetes.deploy.manifests import MANAGER, Manifests, Object, name_of, to_yaml
from tools.kubernetes.deploy.removal import delete, wait_until_gone
from tools.kubernetes.deploy.rollout import INTERVAL, FailedError, Refusals
from tools.kubernetes.deploy.text import printable

_RUN = "grpc-on-kubernetes/run"
"""The annotation that tells this deployment's Job from another's of the same name."""

_SHORTEST_TTL = 60
"""Seconds for which a Job has to stay, so that its end is seen even if the cluster is silent for a moment."""


def check_jobs(manifests: Manifests) -> None:
    """Refuse Jobs that would never begin, or whose end nobody would see."""
    for job in manifests.of_kind("Job"):
        if job["spec"].get("suspend"):
            raise RefusedError(
                f"{name_of(job)} has spec.suspend: true, with which it never begins: take it out"
            )
        ttl = job["spec"].get("ttlSecondsAfterFinished", _SHORTEST_TTL)
        if ttl < _SHORTEST_TTL:
            raise RefusedError(
                f"{name_of(job)} has spec.ttlSecondsAfterFinished: {ttl}, after which nobody could see"
                f" whether it completed: take at least {_SHORTEST_TTL}, or leave it out"
            )


def run_job(kubectl: Kubectl, job: Object, timeout: float, explainer: Explainer) -> None:
    """Make a Job anew and wait until it has completed.

    Raises:
        KubectlError: the cluster refused it.
        FailedError: it failed, was not done within `timeout` seconds, or is not this deployment's.
        StuckError: the one before is not gone within `timeout` seconds.

    """
    started = time.monotonic()
    remove_before(kubectl, job, timeout)
    uid = _create(kubectl, job)
    told, refusals = 0, Refusals()
    time.sleep(INTERVAL)  # none completes at once
    while not is_true(live := _find_own(kubectl, job, uid), "Complete"):
        has_failed = is_true(live, "Failed")
        status = live.get("status", {})
        _check_stays(live)
        refusals.note(name_of(job), _refusal(explainer, live))
        elapsed = time.monotonic() - started
        if has_failed or refusals.have_lasted() or elapsed > timeout:
            explainer.explain(live)
            raise FailedError(
                f"{name_of(job)} {'failed' if has_failed else f'was not done after {elapsed:.0f} s'}"
            )
        if (failed := status.get("failed", 0)) > told:
            told = failed
            click.echo(f"{name_of(job)}: {failed} of its pods failed; another will try")
        time.sleep(INTERVAL)


def remove_before(kubectl: Kubectl, job: Object, timeout: float) -> None:
    """Remove the Job of an earlier deployment: it can't be changed, and one that ended is not run again.

    Raises:
        StuckError: it, or one of its pods, is not gone within `timeout` seconds.

    """
    if before := find(kubectl, job):
        delete(kubectl, before, "--cascade=foreground")
        wait_until_gone(kubectl, [before], timeout)


def _create(kubectl: Kubectl, job: Object) -> str:
    """Make a Job and return its uid."""
    run = secrets.token_hex(8)
    annotations = job["metadata"].get("annotations", {}) | {_RUN: run}
    marked = job | {"metadata": job["metadata"] | {"annotations": annotations}}
    command = ["create", "--filename=-", f"--field-manager={MANAGER}", "--output=json"]
    try:
        live: Object | None = json.loads(kubectl.read(*command, stdin=to_yaml([marked])))
    except KubectlError as error:
        # An attempt whose answer was lost may have made it.
        if "AlreadyExists" not in str(error):
            raise
        live = find(kubectl, job)
    if not live or live["metadata"].get("annotations", {}).get(_RUN) != run:
        raise FailedError(_not_own(job, live))
    return str(live["metadata"]["uid"])


def _find_own(kubectl: Kubectl, job: Object, uid: str) -> Object:
    live = find(kubectl, job)
    if not live or live["metadata"]["uid"] != uid:
        raise FailedError(_not_own(job, live))
    return live


def _check_stays(live: Object) -> None:
    """Raise FailedError if a Job that has not completed is being deleted: no more pods are made for it."""
    metadata = live["metadata"]
    if "deletionTimestamp" in metadata:
        finalizers = ", ".join(metadata.get("finalizers", [])) or "none"
        raise FailedError(
            printable(
                f"{name_of(live)} was deleted by somebody else before it had completed, and is going"
                f" (its finalizers: {finalizers})"
            )
        )


def _not_own(job: Object, live: Object | None) -> str:
    where = " ".join(in_namespace(job))
    if not live:
        return f"{name_of(job)} was deleted by somebody else before it was seen to complete ({where})"
    made = live["metadata"]["creationTimestamp"]
    return (
        f"{name_of(job)} is not the one that this deployment made: somebody else made it at {made} ({where})."
        " Whether this version's has completed is not known"
    )


def _refusal(explainer: Explainer, live: Object) -> str:
    """Return why a Job has no pod yet."""
    if live["spec"].get("suspend"):
        return f"it is suspended by {set_by(live, 'spec', 'suspend')}, and goes on with spec.suspend: false"
    # Its conditions don't tell.
    status = live.get("status", {})
    if any(status.get(key) for key in ("active", "succeeded", "failed")):
        return ""
    try:
        return next(iter(explainer.warnings(live)), "")
    except KubectlError:
        return ""
