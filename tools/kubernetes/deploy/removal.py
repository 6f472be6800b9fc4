"""Deleting objects, and naming what keeps them from being gone."""

import time
from collections.abc import Iterator
from itertools import groupby

import click

from tools.kubernetes.deploy.guards import RefusedError
from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find, get_all, in_namespace, namespace_of, owned_by, resource_of
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
    started, is_told = time.monotonic(), False
    while left := _left(kubectl, items):
        elapsed = time.monotonic() - started
        if elapsed > timeout:
            raise StuckError(f"not gone after {timeout:g} s:\n{_what_holds(kubectl, left)}\n{_ADVICE}")
        if elapsed > _SILENT and not is_told:
            is_told = True
            click.echo(f"waiting for the end of\n{_what_holds(kubectl, left)}")
        time.sleep(_INTERVAL)


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


def _left(kubectl: Kubectl, items: list[Object]) -> list[Object]:
    """Return the objects that are not gone; one that was made anew under a name is another."""
    uids = {item["metadata"].get("uid") for item in items}
    found = [
        live
        for where, group in groupby(items, in_namespace)
        for live in get_all(kubectl, map(resource_of, group), *where)
    ]
    return [live for live in found if live["metadata"]["uid"] in uids or None in uids]


def _what_holds(kubectl: Kubectl, lives: list[Object]) -> str:
    return "\n".join(line for live in lives for line in _holders(kubectl, live))


def _holders(kubectl: Kubectl, live: Object) -> Iterator[str]:
    """Yield what an object's end waits for: its finalizers, what it owns, or what its namespace tells."""
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
