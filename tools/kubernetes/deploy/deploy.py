"""Brings an overlay into a cluster, in steps that may be repeated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import click

from tools.kubernetes.deploy import lease
from tools.kubernetes.deploy.autoscaling import Autoscalers
from tools.kubernetes.deploy.difference import SERVER_SIDE, show_difference
from tools.kubernetes.deploy.explain import Explainer
from tools.kubernetes.deploy.foreign import tell_foreign_fields
from tools.kubernetes.deploy.jobs import remove_before, run_job
from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find, in_namespace, resource_of
from tools.kubernetes.deploy.manifests import MANAGER, Manifests, Object, name_of, to_yaml, with_pods_of
from tools.kubernetes.deploy.needs import needed_by_jobs
from tools.kubernetes.deploy.record import Record, Reference, rendered
from tools.kubernetes.deploy.removal import REMOVAL_TIMEOUT, remove
from tools.kubernetes.deploy.rollout import FailedError, HeldError, paused_by, serving, wait_for_deployment


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
            RefusedError: another deployment is under way.
            KubectlError: the cluster refused something.
            FailedError: the new version did not come up, or somebody deployed another one meanwhile.
            HeldError: somebody paused or deleted a Deployment meanwhile.
            LostError: another deployment took over.
            StuckError: something that was deleted is not gone.

        """
        with step("preparing", "the servers are the old version's"):
            namespaces = self.manifests.of_kind("Namespace")
            self._apply([item for item in namespaces if not find(self.kubectl, item)])
        with lease.held(self.kubectl, self.manifests.namespace, self.manifests.name) as kubectl:
            replace(self, kubectl=kubectl).deploy_undisturbed()

    def deploy_undisturbed(self) -> None:
        """Do so while nobody else does."""
        explainer = Explainer.begin(self.kubectl, self.manifests.namespace)
        record = Record(self.kubectl, self.manifests)
        later = self.manifests.jobs(after_rollout=True)
        needed = needed_by_jobs([item for item in self.manifests.objects if item not in later])
        with step("recording", "the servers are the old version's"):
            # Before anything is made, so that also what fails half-way is known.
            made = rendered(Manifests([*self.manifests.objects, *needed]))
            earlier = record.read() or set()
            recorded = earlier | made
            self._record(earlier, recorded)
        self._make_room(later)
        self._run_jobs(needed, explainer)
        autoscalers = Autoscalers.find(self.kubectl, self.manifests)
        manifests = autoscalers.without_replicas(self.manifests)
        deployments = manifests.of_kind("Deployment")
        with step("applying", "some objects are the new version's"):
            lives = [find(self.kubectl, each) for each in deployments]
            before = [serving(self.kubectl, each) for each in lives]
            for deployment, live in zip(deployments, lives, strict=True):
                if live:
                    self._resume(live)
                    autoscalers.hand_over(deployment, live)
            self._apply([item for item in manifests.objects if item["kind"] != "Job"])
            for deployment in deployments:
                autoscalers.wake(deployment)
        with step("rolling out", "the rollout goes on by itself"):
            for deployment, replica_set in zip(deployments, before, strict=True):
                self._roll_out(deployment, replica_set, explainer)
        self._try_out(deployments, before, explainer)
        with step("pruning", "the new version serves; what the old one needed is not all removed"):
            if self._is_overtaken(deployments):
                raise FailedError("another version was deployed meanwhile, and nothing was removed")
            obsolete = record.find_obsolete(recorded)
            remove(self.kubectl, obsolete, min(self.timeout, REMOVAL_TIMEOUT))
            self._record(recorded, rendered(self.manifests))
            self._set_replicas(autoscalers)

    def _make_room(self, jobs: list[Object]) -> None:
        """Remove the Jobs of an earlier try: one that is stuck would keep this one from its own."""
        if not jobs:
            return
        with step("making room", "the servers are the old version's"):
            for job in jobs:
                remove_before(self.kubectl, job, self.timeout)

    def _run_jobs(self, needed: list[Object], explainer: Explainer) -> None:
        if not (jobs := self.manifests.jobs()):
            return
        with step("migrating", "the servers are the old version's; the migration may go on"):
            self._apply(needed)
            for job in jobs:
                run_job(self.kubectl, job, self.timeout, explainer)

    def _record(self, recorded: set[Reference], references: set[Reference]) -> None:
        if references != recorded:
            self._apply([Record(self.kubectl, self.manifests).manifest(references)])

    def _resume(self, live: Object) -> None:
        """Let a Deployment go on that somebody paused: nothing would come of what is applied."""
        if who := paused_by(live):
            options = [
                "--type=merge",
                '--patch={"spec":{"paused":null}}',
                f"--field-manager={MANAGER}-resume",
            ]
            self.kubectl.read("patch", resource_of(live), *in_namespace(live), *options)
            click.echo(f"{name_of(live)} was paused by {who}; it is resumed")

    def _roll_out(self, deployment: Object, before: Object | None, explainer: Explainer) -> None:
        try:
            wait_for_deployment(self.kubectl, deployment, self.timeout)
        except FailedError as error:
            explainer.explain(deployment)
            tell_foreign_fields(self.kubectl, deployment)
            raise FailedError(f"{error}; {self._roll_back(deployment, before)}") from None

    def _try_out(self, deployments: list[Object], before: list[Object | None], explainer: Explainer) -> None:
        """Run the Jobs that call the new version, and bring the pods before back if one fails."""
        if not (jobs := self.manifests.jobs(after_rollout=True)):
            return
        with step("trying out", "the new version serves, and it is not known whether it works"):
            try:
                for job in jobs:
                    run_job(self.kubectl, job, self.timeout, explainer)
            except FailedError as error:
                for deployment in deployments:
                    tell_foreign_fields(self.kubectl, deployment)
                done = map(self._roll_back, deployments, before, strict=True)
                raise FailedError("; ".join([str(error), *done])) from None

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
                wait_for_deployment(self.kubectl, old, self.timeout)
        except (KubectlError, FailedError, HeldError) as error:
            return f"{name_of(old)} was not rolled back: {error}"
        return (
            f"{name_of(old)} was rolled back to the pods that served before;"
            " the other objects are the new version's"
        )

    def _is_overtaken(self, deployments: list[Object]) -> bool:
        return bool(show_difference(self.kubectl, deployments))

    def _set_replicas(self, autoscalers: Autoscalers) -> None:
        """Apply the replicas of Deployments whose autoscaler was removed just now."""
        for deployment in self.manifests.of_kind("Deployment"):
            if "replicas" in deployment["spec"] and autoscalers.ending(deployment):
                self._apply([deployment])
                wait_for_deployment(self.kubectl, deployment, self.timeout)

    def _apply(self, objects: list[Object]) -> None:
        if objects:
            # The server refuses fields that it does not know in any server-side apply, and in the same words.
            # kubectl would download its schemas to ask for that, which takes as long as the rest.
            options = [*SERVER_SIDE, "--validate=false", "--filename=-"]
            self.kubectl.read("apply", *options, stdin=to_yaml(objects))


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
