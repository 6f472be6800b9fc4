"""Validates objects against the schemas that Kubernetes publishes of its own kinds.

They come with the package kubernetes-validate, and are strict: an unknown field is an error. Of
values they know the type only; the API server of cluster_test knows more, where it can run.
"""

from collections.abc import Iterator

import kubernetes_validate

from k8s.checks.manifests import Manifest, Problem

OLDEST = "1.30"
"""The oldest Kubernetes that the manifests are for: the first that heeds `preStop.sleep` by default."""

NEWEST: str = kubernetes_validate.latest_version().rpartition(".")[0]
"""The newest that kubernetes-validate has the schemas of."""


def validate(manifest: Manifest, version: str) -> list[Problem]:
    """Return what a minor version of Kubernetes, such as 1.30, finds wrong with an object of its own.

    Only what is wrong first is told, but unknown fields beside each other together.
    """
    try:
        kubernetes_validate.validate(dict(manifest), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        what = f"Kubernetes {version} has no {manifest['apiVersion']} {manifest['kind']}"
        return [Problem(manifest, "kind", what, f"`kubectl api-resources` of {version} has all")]
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
        yield error.json_path.removeprefix("$."), error.message, fix
