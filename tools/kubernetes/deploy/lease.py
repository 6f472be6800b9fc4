"""The Lease by which only one deployment at a time changes an application."""

import getpass
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from tools.kubernetes.deploy.guards import RefusedError
from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import get, resource_of
from tools.kubernetes.deploy.manifests import Object
from tools.kubernetes.deploy.text import printable
from tools.kubernetes.deploy.transient import is_transient

_DURATION = 30
"""Seconds after which a Lease that is not renewed may be taken over."""

_RENEWAL = 10
"""Seconds between two renewals."""


class LostError(click.ClickException):
    """Another deployment has taken the Lease over, or somebody deleted it."""


@contextmanager
def held(kubectl: Kubectl, namespace: str, name: str) -> Iterator[Kubectl]:
    """Hold the Lease `deploy-NAME`, and yield a kubectl that refuses to go on once it is lost.

    Raises:
        RefusedError: another deployment holds it.
        KubectlError: the cluster refused it.

    """
    lease = _Lease(kubectl, namespace, f"deploy-{name}")
    lease.acquire()
    renewal = threading.Thread(target=lease.keep, daemon=True)
    renewal.start()
    try:
        yield replace(kubectl, check=lease.check)
    finally:
        with _unstopped():
            lease.release()
            renewal.join(timeout=_RENEWAL)


@contextmanager
def _unstopped() -> Iterator[None]:
    """Ignore another Ctrl-C: what the first one stopped is still to be told, and kubectl to do its work."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def check_free(kubectl: Kubectl, namespace: str, name: str) -> None:
    """Refuse to begin while another deployment holds the Lease `deploy-NAME`."""
    lease = _Lease(kubectl, namespace, f"deploy-{name}")
    if found := lease.read():
        lease.check_expired(found)


class _Lease:
    def __init__(self, kubectl: Kubectl, namespace: str, name: str) -> None:
        self._kubectl = kubectl
        self._where = f"--namespace={namespace}"
        self._manifest: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace},
        }
        self._name = name
        self._holder = _identity()
        self._lease: Object = {}
        self._renewed = 0.0
        self._lost = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ahead = timedelta()

    def acquire(self) -> None:
        self._ahead = self._clock_difference()
        now = self._now()
        spec = {"holderIdentity": self._holder, "acquireTime": now, "leaseDurationSeconds": _DURATION}
        if (found := self.read()) is None:
            self._write("create", self._manifest | {"spec": spec | {"renewTime": now}})
            self._put(self._kubectl, self._lease)  # who may not renew it shall not find out in the middle
            return
        self.check_expired(found)
        if holder := found["spec"].get("holderIdentity"):
            click.echo(f"taking over Lease/{self._name}: {printable(holder)} has not renewed it in time")
        turns = found["spec"].get("leaseTransitions", 0) + 1
        spec = found["spec"] | spec | {"renewTime": now, "leaseTransitions": turns}
        self._write("replace", found | {"spec": spec})

    def check_expired(self, lease: Object) -> None:
        """Raise RefusedError if it is held."""
        spec = lease.get("spec", {})
        holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
        if not holder or not renewed:
            return
        age = (datetime.now(UTC) + self._ahead - _parse(renewed)).total_seconds()
        left = spec.get("leaseDurationSeconds", _DURATION) - age
        if left > 0:
            since = _parse(spec.get("acquireTime", renewed))
            raise RefusedError(
                f"{printable(holder)} has been deploying here since {since:%Y-%m-%d %H:%M:%S} UTC:"
                f" its Lease/{self._name} expires in {left:.0f} s if it is not renewed."
                f" Wait for that deployment to end, or stop it{self._how_to_free(left)}"
            )

    def _how_to_free(self, left: float) -> str:
        """Return what helps against a Lease whose time no deployment wrote, or one with a wrong clock."""
        if left <= _DURATION + _RENEWAL:
            return ""
        return (
            f". So long a time is not of a deployment like this one: where none is under way, free it by"
            f" `kubectl delete lease/{self._name} {self._where}`"
        )

    def read(self) -> Object | None:
        return get(self._kubectl, resource_of(self._manifest), self._where)

    def keep(self) -> None:
        while not self._ended.wait(_RENEWAL) and not self._lost:
            self._renew(replace(self._kubectl, patience=0))

    def check(self) -> None:
        """Raise LostError if another deployment may be under way."""
        if not self._ended.is_set() and time.time() > self._renewed + _DURATION:
            self._renew(self._kubectl)
        if self._lost:
            raise LostError(self._lost)

    def release(self) -> None:
        """Let the next deployment begin at once; where that fails it has to wait until the Lease expires."""
        with self._lock:
            self._ended.set()
            if self._lost:
                return
            spec = self._lease["spec"] | {"holderIdentity": None, "renewTime": self._now()}
            try:
                self._put(replace(self._kubectl, patience=_RENEWAL), self._lease | {"spec": spec})
            except KubectlError as error:
                click.echo(f"Lease/{self._name} was not released and expires by itself: {error}", err=True)

    def _renew(self, kubectl: Kubectl) -> None:
        with self._lock:
            if self._ended.is_set() or self._lost:
                return
            try:
                self._put(kubectl, self._lease | {"spec": self._lease["spec"] | {"renewTime": self._now()}})
            except KubectlError as error:
                self._after_failure(str(error))

    def _after_failure(self, error: str) -> None:
        """Find out whether the Lease is lost, or was written by a renewal that nobody answered."""
        if is_transient(error):
            return
        try:
            found = self.read()
        except KubectlError:
            return
        if found and found["spec"].get("holderIdentity") == self._holder:
            self._lease = found
            return
        holder = found and found["spec"].get("holderIdentity")
        what = f"{printable(holder)} has taken over" if holder else "somebody released or deleted"
        self._lost = (
            f"{what} Lease/{self._name}, and this deployment stops here:"
            " nothing is rolled back or removed. Deploy again when the other one is done"
        )

    def _write(self, command: str, lease: Object) -> None:
        try:
            self._put(self._kubectl, lease, command)
        except KubectlError as error:
            found = self.read()
            if not found or found["spec"].get("holderIdentity") != self._holder:
                if found:
                    self.check_expired(found)
                raise KubectlError(f"Lease/{self._name} could not be taken: {error}") from None
            self._lease = found
            self._renewed = time.time()

    def _put(self, kubectl: Kubectl, lease: Object, command: str = "replace") -> None:
        started = time.time()  # the monotonic clock stands still while a laptop sleeps
        options = [self._where, "--filename=-", "--output=json", f"--request-timeout={_RENEWAL}s"]
        written = kubectl.read(command, *options, stdin=json.dumps(lease))
        self._lease, self._renewed = json.loads(written), started

    def _now(self) -> str:
        return (datetime.now(UTC) + self._ahead).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _clock_difference(self) -> timedelta:
        """Return how far the API server's clock is ahead, by which all deployments write their times."""
        probe: dict[str, Any] = {**self._manifest, "metadata": {"generateName": "deploy-"}}
        command = ["create", self._where, "--dry-run=server", "--filename=-", "--output=json"]
        made = json.loads(self._kubectl.read(*command, stdin=json.dumps(probe)))
        difference = _parse(made["metadata"]["creationTimestamp"]) - datetime.now(UTC)
        return difference if abs(difference) > timedelta(seconds=2) else timedelta()


def _identity() -> str:
    try:
        user = getpass.getuser()
    except KeyError, OSError:  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}-{secrets.token_hex(4)}"


def _parse(time_of_kubernetes: str) -> datetime:
    return datetime.fromisoformat(time_of_kubernetes)
