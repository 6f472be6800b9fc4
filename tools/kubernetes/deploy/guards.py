"""What keeps a deployment from being made by mistake."""

import re
import subprocess
import uuid
from pathlib import Path

import click
import pydantic
import yaml

from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find, namespace_of
from tools.kubernetes.deploy.manifests import SET_LABEL, Manifests, name_of, to_yaml
from tools.kubernetes.deploy.text import printable

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_NO_IMAGE = "sha256:" + 64 * "0"

_UID_OF_CLUSTER = ("get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}")
"""Every cluster has this namespace, and no two the same uid."""

_HOW_TO_READ = "`kubectl get namespace kube-system --output=jsonpath='{.metadata.uid}'` prints a cluster's"


_WITH_SPEC = ("Deployment", "StatefulSet", "Job", "Service", "HorizontalPodAutoscaler", "ScaledObject")
"""Kinds that mean nothing without a spec."""


class RefusedError(click.ClickException):
    """The deployment must not be made; the text says why, and what would be right."""

    exit_code = 3


class Settings(pydantic.BaseModel, extra="forbid", frozen=True):
    """What deploy.yaml of an overlay says."""

    contexts: tuple[str, ...] = ()
    """The contexts that it may be deployed to; any if there are none."""

    clusters: tuple[uuid.UUID, ...] = ()
    """The uids of those clusters: what a context is called is up to each kubeconfig."""

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
            # libyaml's: the one in Python takes seconds for a few thousand brackets.
            content = yaml.load(file.read_text("utf-8"), yaml.CSafeLoader)
            return cls.model_validate(content or {})
        except (ValueError, RecursionError, yaml.YAMLError) as error:  # of dates and bytes as well
            raise RefusedError(printable(f"{file}: {error}")) from None


def check_context(settings: Settings, overlay: str, context: str | None) -> None:
    """Refuse a context that is not meant for the overlay."""
    allowed = ", ".join(settings.contexts) or "any"
    if not context and (settings.contexts or settings.release):
        raise RefusedError(
            f"{overlay} is not deployed to whatever context is current: --context NAME ({allowed})"
        )
    if settings.contexts and context not in settings.contexts:
        raise RefusedError(f"{overlay} may not be deployed to context {context!r}, only to {allowed}")


def check_identity(settings: Settings, overlay: str, kubectl: Kubectl) -> str:
    """Return the cluster's uid, or nothing if it may not be read and need not be known.

    Raises:
        RefusedError: the overlay is not for this cluster, whatever its context is called.

    """
    code, uid, error = kubectl.run(*_UID_OF_CLUSTER)
    allowed = [str(each) for each in settings.clusters]
    if allowed and code:
        raise RefusedError(
            f"{overlay} is for {_of_cluster(*allowed)}, and which this is can't be read: {error}"
        )
    if allowed and uid not in allowed:
        raise RefusedError(
            f"{overlay} is for {_of_cluster(*allowed)}, and {_context(kubectl)} is {_of_cluster(uid)}."
            f" If that is right, add it to `clusters` in deploy.yaml; {_HOW_TO_READ}"
        )
    return uid


def check_pinned(settings: Settings, overlay: str, uid: str) -> None:
    """Refuse to deploy a release that nobody looks at to a cluster that is known by a context's name only."""
    if settings.release and not settings.clusters:
        raise RefusedError(
            f"{overlay} is a release, and its deploy.yaml does not say for which cluster; a context's name"
            f" may be another one's elsewhere. Write `clusters: [{uid or 'UID'}]` into it, if it is the"
            f" right one ({_HOW_TO_READ}), or answer the question in the place of --yes"
        )


def check_objects(manifests: Manifests) -> None:
    """Refuse an overlay whose objects could not be found again."""
    deployments = manifests.of_kind("Deployment")
    if not deployments:
        raise RefusedError("the overlay has no Deployment, by whose name its objects are found again")
    if "namespace" not in deployments[0]["metadata"]:
        raise RefusedError(f"{name_of(deployments[0])} has no namespace: set it in kustomization.yaml")


def check_shapes(manifests: Manifests) -> None:
    """Refuse objects of kinds that are looked into, and that have nothing in them."""
    for item in manifests.of_kind(*_WITH_SPEC):
        if not isinstance(item.get("spec"), dict):
            raise RefusedError(f"{name_of(item)} has no spec, or one that is no mapping")


def check_cluster(kubectl: Kubectl) -> None:
    """Refuse a cluster that does not answer within ten seconds."""
    try:
        kubectl.read("get", "--raw=/readyz", "--request-timeout=10s")
    except KubectlError as error:
        raise RefusedError(f"the cluster of {_context(kubectl)} can't be used: {error}") from None


def _context(kubectl: Kubectl) -> str:
    return f"context {kubectl.context!r}" if kubectl.context else "the current context"


def _of_cluster(*uids: str) -> str:
    return f"cluster {' or '.join(uids)}"


def check_images(settings: Settings, manifests: Manifests) -> None:
    """Refuse a container without an image, and images that may be another one tomorrow."""
    for where, container in manifests.without_image():
        raise RefusedError(
            f"{where}: container {container} has no image. Is its name right? A patch of another name adds"
            " a container"
        )
    for where, image in manifests.images():
        if image.endswith(_NO_IMAGE):
            raise RefusedError(f"{where}: no image was built for {image}")
        if settings.release and not _DIGEST.search(image):
            raise RefusedError(f"{where}: image {image} has no digest; a tag may be another image tomorrow")


def check_kinds(kubectl: Kubectl, manifests: Manifests) -> None:
    """Refuse a cluster that misses what a component needs, before anything is half there."""
    command = ["create", "--dry-run=client", "--validate=false", "--filename=-"]
    code, _, error = kubectl.run(*command, stdin=to_yaml(manifests.objects))
    missing = re.findall(r'no matches for kind "(.+?)" in version "(.+?)"', error)
    if missing:
        kinds = ", ".join(f"{kind} ({version})" for kind, version in sorted(set(missing)))
        raise RefusedError(
            f"the cluster does not know {kinds}; the README.md of each component says what it needs"
        )
    if code:
        raise KubectlError(error)


def check_namespace(kubectl: Kubectl, manifests: Manifests) -> None:
    """Refuse a namespace that was not made by deploying the overlay, and so may have what is others'."""
    live = find(kubectl, namespace_of(manifests.namespace))
    if not live or live["metadata"].get("labels", {}).get(SET_LABEL) != manifests.name:
        raise RefusedError(
            f"there is no namespace {manifests.namespace} that was made by deploying {manifests.name}"
        )


def change_cause(settings: Settings, overlay: str, work_tree: Path, *, allow_dirty: bool) -> str:
    """Return what is deployed, for the Deployment's annotation.

    Raises:
        RefusedError: there are changes that are in no commit, and they were not allowed.

    """
    try:
        commit = _git(work_tree, "rev-parse", "--short=12", "HEAD")
        # Not as the user's own settings have it.
        changes = _git(work_tree, "status", "--porcelain", "--untracked-files=normal")
    except subprocess.CalledProcessError as error:
        commit, changes = "no commit", f"git in {work_tree}: {error.stderr.strip()}"
    except FileNotFoundError:
        commit, changes = "no commit", "git is not on PATH"
    if changes and settings.release and not allow_dirty:
        raise RefusedError(
            f"{overlay} is deployed from a commit, and these changes are in none"
            f" (--allow-dirty overrules):\n{changes}"
        )
    return f"deploy_{overlay} of {commit}{' with uncommitted changes' if changes else ''}"


def _git(work_tree: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=work_tree, capture_output=True, text=True, check=True).stdout.rstrip()
