"""Brings an overlay into a cluster, in steps that may be repeated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from tools.kubernetes.deploy.changes import SERVER_SIDE, find_obsolete, show_difference
from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.manifests import Manifests, Object, name_of, to_yaml, with_pods_of
from tools.kubernetes.deploy.rollout import FailedError, serving, wait_for_deployment, wait_for_job


class StoppedError(click.ClickException):
    """Ctrl-C; the text says in which state the cluster is."""

    exit_code = 130


@dataclass(frozen=True)
class Deployer:
    """Brings manifests into a cluster."""

    kubectl: Kubectl
    manifests: Manifests

    timeout: float
    """Seconds that the migration, and then each rollout, may take."""

    rollback: bool

    def deploy(self) -> None:
        """Run the Jobs, apply everything, wait for the rollout, and remove what is no longer rendered.

        Nothing is removed earlier, so that a rollback finds what the old version needs.

        Raises:
            KubectlError: the cluster refused something.
            FailedError: the new version did not come up, or somebody deployed another one meanwhile.

        """
        self._ensure_namespace()
        self._run_jobs()
        deployments = self.manifests.of_kind("Deployment")
        with step("applying", "some objects are the new version's"):
            before = [serving(self.kubectl, each) for each in deployments]
            self._apply([item for item in self.manifests.objects if item["kind"] not in ("Job", "Namespace")])
        with step("rolling out", "the rollout goes on by itself"):
            for deployment, replica_set in zip(deployments, before, strict=True):
                self._roll_out(deployment, replica_set)
        with step("pruning", "the new version serves; what the old one needed is not all removed"):
            if self._is_overtaken(deployments):
                raise FailedError("another version was deployed meanwhile, and nothing was removed")
            self._prune()

    def _ensure_namespace(self) -> None:
        with step("preparing", "the servers are the old version's"):
            self._apply(self.manifests.of_kind("Namespace"))

    def _run_jobs(self) -> None:
        if not (jobs := self.manifests.of_kind("Job")):
            return
        with step("migrating", "the servers are the old version's; the migration may go on"):
            self._apply(self.manifests.needed_by_jobs())
            for job in jobs:
                # A Job can't be changed, and one that ended is not run again. Its pods end first.
                command = ["delete", name_of(job), self._where, "--ignore-not-found", "--cascade=foreground"]
                self.kubectl.read(*command, f"--timeout={self.timeout:g}s")
                self._apply([job])
                wait_for_job(self.kubectl, job, self.timeout)

    def _roll_out(self, deployment: Object, before: Object | None) -> None:
        try:
            wait_for_deployment(self.kubectl, deployment, self.timeout)
        except FailedError as error:
            raise FailedError(f"{error}; {self._roll_back(deployment, before)}") from None

    def _roll_back(self, deployment: Object, before: Object | None) -> str:
        """Bring back the pods that served before, and return what was done."""
        if not self.rollback:
            return "it was left as it is"
        if not before:
            return "no pod was ready before, and it was left as it is"
        # Not `rollout undo`: what that brings back would stay, since it is not ours, in all later versions.
        old = with_pods_of(deployment, before)
        try:
            if self._is_overtaken([deployment]):
                return "another version was deployed meanwhile, and it was left as it is"
            with step("rolling back", "the pods may be of either version"):
                self._apply([old])
                status = ["rollout", "status", name_of(old), self._where, f"--timeout={self.timeout:g}s"]
                self.kubectl.read(*status)
        except KubectlError as error:
            return f"{name_of(old)} was not rolled back: {error}"
        return (
            f"{name_of(old)} was rolled back to the pods that served before;"
            " the other objects are the new version's"
        )

    def _is_overtaken(self, deployments: list[Object]) -> bool:
        return bool(show_difference(self.kubectl, deployments))

    def _prune(self) -> None:
        for item in find_obsolete(self.kubectl, self.manifests):
            remove(self.kubectl, item)

    def _apply(self, objects: list[Object]) -> None:
        if objects:
            self.kubectl.read("apply", *SERVER_SIDE, "--filename=-", stdin=to_yaml(objects))

    @property
    def _where(self) -> str:
        return f"--namespace={self.manifests.namespace}"


def remove(kubectl: Kubectl, item: Object) -> None:
    """Delete an object that may be gone already."""
    where = f"--namespace={item['metadata']['namespace']}"
    group, _, version = item["apiVersion"].rpartition("/")
    kind = f"{item['kind']}.{version}.{group}" if group else item["kind"]
    kubectl.read("delete", f"{kind}/{item['metadata']['name']}", where, "--ignore-not-found")
    click.echo(f"  - {name_of(item)}")


@contextmanager
def step(name: str, state: str, command: str = "Deploy") -> Iterator[None]:
    """Say what is done now, and if it is stopped, how the cluster was left and which command finishes it."""
    try:
        click.secho(f"{name} ...", bold=True)
        yield
    except KeyboardInterrupt:
        raise StoppedError(f"stopped while {name}: {state}. {command} again to finish.") from None
    except KubectlError as error:
        raise KubectlError(f"while {name}: {error}\nHow the cluster was left: {state}.") from None
