"""deploy, diff, delete and render: what `bazel run //k8s:deploy_prod` and its like start."""

import os
import re
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from tools.kubernetes.deploy import lease
from tools.kubernetes.deploy.autoscaling import Autoscalers
from tools.kubernetes.deploy.changes import find_changes, find_deployed
from tools.kubernetes.deploy.deploy import Deployer, StoppedError, step
from tools.kubernetes.deploy.guards import (
    RefusedError,
    Settings,
    change_cause,
    check_cluster,
    check_context,
    check_identity,
    check_images,
    check_kinds,
    check_namespace,
    check_objects,
    check_pinned,
    check_shapes,
)
from tools.kubernetes.deploy.jobs import check_jobs
from tools.kubernetes.deploy.kubectl import Kubectl
from tools.kubernetes.deploy.live import namespace_of
from tools.kubernetes.deploy.manifests import Manifests, name_of, to_yaml
from tools.kubernetes.deploy.push import push_image
from tools.kubernetes.deploy.rehearsal import rehearse, rehearse_removal
from tools.kubernetes.deploy.removal import check_namespace_stays, remove
from tools.kubernetes.deploy.rollout import FailedError, check_not_paused, pauses
from tools.kubernetes.deploy.text import printable

_PATIENCE = 60
"""Seconds for which a cluster that answered once may be silent, where no --timeout says it."""

_FIRST_PATIENCE = 10
"""Seconds for which one may fail to answer for the first time: the address may be wrong."""

_EPILOG = "Exit codes: 0 done, 1 failed or not confirmed, 2 wrong usage, 3 refused, 130 Ctrl-C or SIGTERM."


@dataclass(frozen=True)
class Overlay:
    """What Bazel built of an overlay, and what goes with it."""

    name: str
    manifests: Manifests
    settings: Settings
    kubectl: Path
    push: Path
    digest: Path

    def cluster(self, context: str | None, patience: float = _PATIENCE) -> Kubectl:
        """Return kubectl for a look at a cluster that the overlay may be in, and that answers.

        Args:
            context: the kubeconfig's.
            patience: seconds for which it tries again after an error that passes by itself.

        Raises:
            RefusedError: it may not, or the cluster doesn't.

        """
        check_context(self.settings, self.name, context)
        check_objects(self.manifests)
        check_shapes(self.manifests)
        check_not_paused(self.manifests)
        check_jobs(self.manifests)
        kubectl = Kubectl(self.kubectl, context).pinned()
        check_cluster(replace(kubectl, patience=_FIRST_PATIENCE))
        kubectl = replace(kubectl, patience=patience).remembering()
        check_identity(self.settings, self.name, kubectl)
        return kubectl

    def check_undisturbed(self, kubectl: Kubectl) -> None:
        """Refuse while another deployment or deletion is under way."""
        check_namespace_stays(kubectl, self.manifests.namespace)
        lease.check_free(kubectl, self.manifests.namespace, self.manifests.name)

    def confirm(self, kubectl: Kubectl, action: str, *, yes: bool) -> None:
        """Ask whether to do it in this cluster, unless the answer was given.

        Raises:
            RefusedError: nobody can be asked, or somebody has to be.
            FailedError: the answer is no.
            StoppedError: the answer is Ctrl-C.

        """
        uid = check_identity(self.settings, self.name, kubectl)
        if yes:
            check_pinned(self.settings, self.name, uid)
            return
        context = f"context {kubectl.context}" if kubectl.context else "the cluster of this pod"
        where = (
            f"namespace {self.manifests.namespace} of {context}, cluster {uid or 'whose uid is not readable'}"
        )
        _ask(f"{action} {where}?")


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"([1-9]\d*)([smh])", str(value))
        if not match:
            self.fail(f"{value!r} is not a duration such as 90s, 5m or 1h", param, ctx)
        return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # click would say "Aborted!", with exit code 1.
            raise StoppedError("stopped, and no step was under way") from None


_context = click.option(
    "--context", metavar="NAME", help="The kubeconfig's context; else the current one, where that is allowed."
)
_yes = click.option("--yes", is_flag=True, help="Don't ask.")
_file = click.Path(path_type=Path)


@click.group(cls=_Commands)
@click.option("--overlay", hidden=True, required=True)
@click.option("--manifests", hidden=True, required=True, type=_file)
@click.option("--settings", hidden=True, required=True, type=_file)
@click.option("--contexts", hidden=True, default="")
@click.option("--kubectl", hidden=True, required=True, type=_file)
@click.option("--push", hidden=True, required=True, type=_file)
@click.option("--digest", hidden=True, required=True, type=_file)
@click.pass_context
def main(context: click.Context, /, overlay: str, contexts: str, **files: Path) -> None:
    """Deploy an overlay; Bazel's targets fill in the options."""
    # What stops a job of a CI is taken as Ctrl-C is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    context.obj = Overlay(
        name=overlay,
        manifests=Manifests.read(files["manifests"]),
        settings=Settings.read(files["settings"]).with_contexts(contexts),
        kubectl=files["kubectl"].absolute(),
        push=files["push"].absolute(),
        digest=files["digest"],
    )


@main.command(epilog=_EPILOG)
@_context
@_yes
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--diff", is_flag=True, help="Show every line that changes.")
@click.option(
    "--timeout", default="15m", type=_Duration(), help="For the migration, and again for the rollout (15m)."
)
@click.option("--no-push", is_flag=True, help="The image is in its repository already.")
@click.option("--no-rollback", is_flag=True, help="Leave a version that doesn't come up as it is.")
@click.option(
    "--allow-dirty", is_flag=True, help="Deploy what is in no commit too; the Deployment's history will tell."
)
@click.pass_obj
def deploy(
    overlay: Overlay,
    context: str | None,
    timeout: float,
    *,
    yes: bool,
    dry_run: bool,
    diff: bool,
    no_push: bool,
    no_rollback: bool,
    allow_dirty: bool,
) -> None:
    """Push the image, migrate the database, roll out, and remove what is no longer rendered."""
    kubectl = overlay.cluster(context, timeout)
    cause = change_cause(overlay.settings, overlay.name, _work_tree(), allow_dirty=allow_dirty)
    check_images(overlay.settings, overlay.manifests)
    check_kinds(kubectl, overlay.manifests)
    overlay.check_undisturbed(kubectl)
    manifests = overlay.manifests.marked(cause)
    _show(kubectl, manifests, diff=diff)
    rehearse(kubectl, manifests)
    if dry_run:
        return
    overlay.confirm(kubectl, f"Deploy {overlay.name} to", yes=yes)
    if not no_push:
        push_image(overlay.push, overlay.digest, manifests)
    Deployer(kubectl.afresh(), manifests, timeout, rollback=not no_rollback).deploy()
    click.secho(f"{manifests.name} is rolled out: {cause}", fg="green")


@main.command(epilog=_EPILOG)
@_context
@click.pass_obj
def diff(overlay: Overlay, context: str | None) -> None:
    """Show every line that deploying would change."""
    kubectl = overlay.cluster(context)
    cause = change_cause(overlay.settings, overlay.name, _work_tree(), allow_dirty=True)
    _show(kubectl, overlay.manifests.marked(cause), diff=True)


@main.command(epilog=_EPILOG)
@_context
@_yes
@click.option(
    "--data", is_flag=True, help="The namespace too, with all volumes, secrets and whatever else is in it."
)
@click.option("--timeout", default="5m", type=_Duration(), help="Until all is gone (5m).")
@click.pass_obj
def delete(overlay: Overlay, context: str | None, timeout: float, *, yes: bool, data: bool) -> None:
    """Delete what was deployed; without --data, volumes and the namespace stay."""
    kubectl = overlay.cluster(context)
    namespace = overlay.manifests.namespace
    if data:
        check_namespace(kubectl, overlay.manifests)
    overlay.check_undisturbed(kubectl)
    deployed = find_deployed(kubectl, overlay.manifests)
    click.echo("\n".join(f"  - {name_of(item)}" for item in deployed) or "nothing is deployed")
    if not deployed and not data:
        return
    gone_at_last = [namespace_of(namespace)] if data else []
    rehearse_removal(kubectl, deployed + gone_at_last)
    what = f"namespace {namespace} and ALL DATA in it" if data else "these objects"
    overlay.confirm(kubectl, f"Delete {what} from", yes=yes)
    kubectl = kubectl.afresh()
    with step("deleting", "what is named with a dash after `deleting` is gone, or going", "Delete"):
        with lease.held(kubectl, namespace, overlay.manifests.name) as guarded:
            remove(guarded, deployed, timeout)
        remove(kubectl, gone_at_last, timeout)


@main.command(epilog=_EPILOG)
@click.argument("folder", type=_file)
@click.pass_obj
def render(overlay: Overlay, folder: Path) -> None:
    """Write the overlay's objects into FOLDER, for tools that deploy from a repository.

    They are in one file, which the next time replaces: of a file each, old ones would stay.
    """
    file = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), folder, f"{overlay.name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_yaml(overlay.manifests.objects))
    click.echo(f"wrote {len(overlay.manifests.objects)} objects to {file}")


def _show(kubectl: Kubectl, manifests: Manifests, *, diff: bool) -> None:
    autoscalers = Autoscalers.find(kubectl, manifests)
    changes = find_changes(kubectl, autoscalers.kept(autoscalers.without_replicas(manifests)))
    if diff and changes.diff:
        click.echo(printable(changes.diff), nl=False)
    click.echo("\n".join(f"  {line}" for line in changes.summary) or "nothing changes")
    notes = [*autoscalers.notes(manifests.of_kind("Deployment")), *pauses(kubectl, manifests)]
    for note in notes + changes.notes:
        click.secho(note, fg="yellow")


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise RefusedError(f"{question} Nobody is there to answer: pass --yes")
    try:
        confirmed = click.confirm(question)
    except click.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise StoppedError("stopped at the question: nothing was changed") from None
        confirmed = False  # Ctrl-D
    if not confirmed:
        raise FailedError("not confirmed: nothing was changed")


def _work_tree() -> Path:
    return Path(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))


if __name__ == "__main__":
    main()
