"""What keeps a deployment from being made by mistake."""

import re
import subprocess
from pathlib import Path

import click
import pydantic
import yaml

from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.manifests import Manifests, Object

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_NO_IMAGE = "sha256:" + 64 * "0"


class RefusedError(click.ClickException):
    """The deployment must not be made; the text says why, and what would be right."""

    exit_code = 3


class Settings(pydantic.BaseModel, extra="forbid", frozen=True):
    """What deploy.yaml of an overlay says."""

    contexts: tuple[str, ...] = ()
    """The contexts that it may be deployed to; any if there are none."""

    release: bool = False
    """Whether only committed sources and images with a digest are deployed."""

    def with_contexts(self, contexts: str) -> Settings:
        """Return the same settings with other contexts, if there are any in the comma-separated text."""
        return self.model_copy(update={"contexts": tuple(contexts.split(","))}) if contexts else self

    @classmethod
    def read(cls, file: Path) -> Settings:
        """Read a deploy.yaml.

        Raises:
            RefusedError: it is not what it should be.

        """
        try:
            return cls.model_validate(yaml.safe_load(file.read_text()) or {})
        except (pydantic.ValidationError, yaml.YAMLError) as error:
            raise RefusedError(f"{file}: {error}") from None


def check_context(settings: Settings, overlay: str, context: str | None) -> None:
    """Refuse a context that is not meant for the overlay."""
    if not settings.contexts:
        return
    allowed = ", ".join(settings.contexts)
    if context is None:
        raise RefusedError(
            f"{overlay} is not deployed to whatever context is current: --context NAME ({allowed})"
        )
    if context not in settings.contexts:
        raise RefusedError(f"{overlay} may not be deployed to context {context!r}, only to {allowed}")


def check_cluster(kubectl: Kubectl) -> None:
    """Refuse a cluster that does not answer within ten seconds."""
    try:
        kubectl.read("get", "--raw=/readyz", "--request-timeout=10s")
    except KubectlError as error:
        context = f"context {kubectl.context!r}" if kubectl.context else "the current context"
        raise RefusedError(f"the cluster of {context} can't be used: {error}") from None


def check_images(settings: Settings, manifests: Manifests) -> None:
    """Refuse images that may be another one tomorrow."""
    for where, image in manifests.images():
        if image.endswith(_NO_IMAGE):
            raise RefusedError(f"{where}: no image was built for {image}")
        if settings.release and not _DIGEST.search(image):
            raise RefusedError(f"{where}: image {image} has no digest; a tag may be another image tomorrow")


def check_kinds(kubectl: Kubectl, manifests: Manifests) -> None:
    """Refuse a cluster that misses what a component needs, before anything is half there."""
    rows = [row.split()[-3:] for row in kubectl.read("api-resources", "--no-headers").splitlines()]
    known = {(version, kind) for version, _, kind in rows}
    missing = {
        f"{item['kind']} ({item['apiVersion']})" for item in manifests.objects if _kind(item) not in known
    }
    if missing:
        raise RefusedError(
            f"the cluster does not know {', '.join(sorted(missing))};"
            " the README.md of each component says what it needs"
        )


def change_cause(settings: Settings, overlay: str, work_tree: Path, *, allow_dirty: bool) -> str:
    """Return what is deployed, for the Deployment's annotation.

    Raises:
        RefusedError: there are changes that are in no commit, and they were not allowed.

    """
    commit = _git(work_tree, "rev-parse", "--short=12", "HEAD")
    changes = _git(work_tree, "status", "--porcelain") if commit else f"{work_tree} is not a git work tree"
    if changes and settings.release and not allow_dirty:
        raise RefusedError(
            f"{overlay} is deployed from a commit, and these changes are in none"
            f" (--allow-dirty overrules):\n{changes}"
        )
    return f"deploy_{overlay} of {commit or 'no commit'}{' with uncommitted changes' if changes else ''}"


def _kind(item: Object) -> tuple[str, str]:
    return item["apiVersion"], item["kind"]


def _git(work_tree: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=work_tree, capture_output=True, text=True, check=False)
    return done.stdout.rstrip() if done.returncode == 0 else ""
