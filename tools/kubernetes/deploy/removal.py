"""Deleting objects, and naming what keeps them from being gone."""

import time
from collections.abc import Iterator

import click

from tools.kubernetes.deploy.guards import RefusedError
from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find, in_namespace, namespace_of, owned_by, resource_of
from tools.kubernetes.deploy.manifests import Object, name_of
from tools.kubernetes.deploy.text import printable

REMOVAL_TIMEOUT = 120
"""Seconds within which what was deleted should be gone; a controller may have to free a load balancer."""

_INTERVAL = 0.5
"""Seconds between two questions whether an object is gone."""

_SILENT = 5
"""Seconds after which it is said what is waited for."""


class StuckError(KubectlError):
    """An object was deleted and is still there; the text says what it waits for."""


def remove(kubectl: Kubectl, items: list[Object], timeout: float) -> None:
    """Delete objects, which may be gone already, and wait until all are gone.

    Raises:
        KubectlError: the cluster refused it.
        StuckError: some were not gone within `timeout` seconds.

    """
    for item in items:
        delete(kubectl, item)
        click.echo(f"  - {name_of(item)}")
    wait_until_gone(kubectl, items, timeout)


def wait_until_gone(kubectl: Kubectl, items: list[Object], timeout: float) -> None:
    """Wait until all objects, which were deleted, are gone.

    Raises:
        StuckError: some were not gone within `timeout` seconds.

    """
    deadline = time.monotonic() + timeout
    stuck = [item for item in items if not _is_gone(kubectl, item, deadline)]
    if stuck:
        lines = [line for item in stuck for line in _holders(kubectl, item)]
        raise StuckError("\n".join([f"not gone after {timeout:g} s:", *lines, _ADVICE]))


_ADVICE = (
    "Its controller takes a finalizer away once it has cleaned up: look why it does not. If that controller"
    " is gone for good, clean up by hand and take it away yourself: kubectl patch KIND/NAME --type=merge"
    """ --patch='{"metadata":{"finalizers":null}}'"""
)


def delete(kubectl: Kubectl, item: Object, *options: str) -> None:
    """Have the cluster begin to delete an object."""
    kubectl.read(
        "delete", resource_of(item), *in_namespace(item), "--ignore-not-found", "--wait=false", *options
    )


def check_namespace_stays(kubectl: Kubectl, namespace: str) -> None:
    """Refuse a namespace that is being deleted: nothing can be made in it."""
    live = find(kubectl, namespace_of(namespace))
    if live and "deletionTimestamp" in live["metadata"]:
        reasons = "\n".join(f"  {line}" for line in _holders(kubectl, live))
        raise RefusedError(
            f"namespace {namespace} is being deleted, and nothing can be made in it until it is gone:\n"
            f"{reasons}"
        )


def _is_gone(kubectl: Kubectl, item: Object, deadline: float) -> bool:
    """Wait until an object is gone, or its like was made anew; return False after the deadline."""
    uid = item["metadata"].get("uid")
    speak = time.monotonic() + _SILENT
    while (live := find(kubectl, item)) and (not uid or live["metadata"]["uid"] == uid):
        now = time.monotonic()
        if now > deadline:
            return False
        if now > speak:
            speak = deadline
            click.echo("\n".join(["waiting for the end of", *_holders(kubectl, item)]))
        time.sleep(_INTERVAL)
    return True


def _holders(kubectl: Kubectl, item: Object) -> Iterator[str]:
    """Yield what an object's end waits for: its finalizers, what it owns, or what its namespace tells."""
    if not (live := find(kubectl, item)):
        return
    metadata = live["metadata"]
    finalizers = ", ".join([*metadata.get("finalizers", []), *live.get("spec", {}).get("finalizers", [])])
    since = metadata.get("deletionTimestamp", "an unknown time")
    yield printable(f"{name_of(live)}: deleted at {since}, its finalizers: {finalizers or 'none'}")
    for each in live.get("status", {}).get("conditions", []):
        if each["type"].startswith("Namespace") and each["status"] == "True":
            yield printable(f"    {each['message']}")
    if "foregroundDeletion" in metadata.get("finalizers", []):
        for pod in owned_by(kubectl, live, "pods"):
            held = ", ".join(pod["metadata"].get("finalizers", [])) or "none, it takes its time to stop"
            yield printable(f"    {name_of(pod)} has to end first, its finalizers: {held}")
