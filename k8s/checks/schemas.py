"""Validates objects against the schemas that Kubernetes publishes of its own kinds.

They come with the package kubernetes-validate, and are strict: an unknown field is an error. Of
values they know the type only; the API server of cluster_test knows more, where it can run.
"""

import re
from collections.abc import Iterator

import kubernetes_validate

from k8s.checks.manifests import Manifest, Problem

OLDEST = "1.30"
"""The oldest Kubernetes that the manifests are for: the first that heeds `preStop.sleep` by default."""

NEWEST: str = kubernetes_validate.latest_version().rpartition(".")[0]
"""The newest that kubernetes-validate has the schemas of."""

_OWN = re.compile(r"([a-z]+(\.[a-z.]+\.k8s\.io|\.k8s\.io)?/)?v\d\w* [A-Z]\w*", re.ASCII)
"""An apiVersion and a kind of Kubernetes' own."""


class UnknownKindError(Exception):
    """A version of Kubernetes has no such kind of its own; the message says which."""


def validate(manifest: Manifest, version: str) -> list[Problem]:
    """Return what a minor version of Kubernetes, such as 1.30, finds wrong with an object of its own.

    Only what is wrong first is told, but unknown fields beside each other together.
    """
    try:
        return find_wrong(manifest, version)
    except UnknownKindError as error:
        return [Problem(manifest, "kind", str(error), f"`kubectl api-resources` of {version} has all")]


def find_wrong(manifest: Manifest, version: str) -> list[Problem]:
    """Return what `validate` does.

    Raises:
        UnknownKindError: the version has no such kind.

    """
    unknown = UnknownKindError(f"Kubernetes {version} has no {manifest['apiVersion']} {manifest['kind']}")
    # The package goes by the first word of a group, and makes a file's name of these.
    if not _OWN.fullmatch(f"{manifest['apiVersion']} {manifest['kind']}"):
        raise unknown
    try:
        kubernetes_validate.validate(dict(manifest), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        raise unknown from None
    except kubernetes_validate.ValidationError as error:
        return [Problem(manifest, *explanation) for explanation in _explain(error, version)]
    return []


def _explain(error: kubernetes_validate.ValidationError, version: str) -> Iterator[tuple[str, str, str]]:
    """Yield a field, what is wrong with it and what would be right."""
    known = error.schema.get("properties")
    if error.validator == "additionalProperties" and known:
        fix = f"Kubernetes {version} knows here {', '.join(sorted(known))}"
        for name in sorted(error.instance.keys() - known.keys()):
            yield f"{error.json_path}.{name}".removeprefix("$."), "unknown field", fix
    else:
        fix = error.schema.get("description", f"see the reference of Kubernetes {version}")
        # Other messages quote the value, which may be a secret.
        what = error.message if error.validator == "required" else f"is {_kind_of(error.instance)}"
        yield error.json_path.removeprefix("$."), what, fix


def _kind_of(value: object) -> str:
    return f"of type {type(value).__name__}"
