"""Whether objects have the form that the rules rely on: theirs is told before any rule looks at them.

Kubernetes' own kinds are held to its published schemas; of a custom kind, shapes.yaml has what rules read.
"""

import base64
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from k8s.checks import schemas
from k8s.checks.manifests import Manifest, Problem

type _Schema = dict[str, Any]

_TYPES: Mapping[str, Sequence[str]] = {
    "port": ("integer", "string"),
    **{each: (each,) for each in ("boolean", "integer", "object", "string")},
}

_NAMES = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a string",
    type(None): "null",
}


def find_wrong(manifest: Manifest) -> list[Problem]:
    """Return what of an object has another form than its kind has.

    Raises:
        UnknownKindError: there is no schema of its kind.

    """
    problems = [_problem(manifest, error) for error in _common().iter_errors(manifest)]
    if problems:
        return problems
    if validator := _custom().get(_custom_kind(manifest)):
        return [_problem(manifest, error) for error in validator.iter_errors(manifest)]
    return schemas.find_wrong(manifest, schemas.NEWEST) or list(_not_base64(manifest))


def _not_base64(manifest: Manifest) -> Iterator[Problem]:
    fields = {"ConfigMap": "binaryData", "Secret": "data"}
    field = fields.get(manifest["kind"], "")
    for key, value in (manifest.get(field) or {}).items():
        try:
            base64.b64decode(value)
        except ValueError:
            yield Problem(
                manifest, f"{field}[{key}]", "is not base64", "encode it, or use the field for text"
            )


def _custom_kind(manifest: Manifest) -> str:
    return f"{str(manifest.get('apiVersion')).partition('/')[0]}/{manifest.get('kind')}"


def _problem(manifest: Manifest, error: jsonschema.ValidationError) -> Problem:
    field = error.json_path.removeprefix("$").removeprefix(".") or "the object"
    if error.validator == "type":
        types = error.validator_value
        expected = types if isinstance(types, str) else " or ".join(types)
        return Problem(manifest, field, f"is {_NAMES[type(error.instance)]}", f"make it of type {expected}")
    return Problem(manifest, field, error.message, "add it")


@functools.cache
def _custom() -> Mapping[str, jsonschema.Draft202012Validator]:
    text = Path(__file__).with_name("shapes.yaml").read_text("utf-8")
    return {kind: _validator(fields) for kind, fields in yaml.safe_load(text).items()}


@functools.cache
def _common() -> jsonschema.Draft202012Validator:
    fields = ["apiVersion! string", "kind! string", "metadata!.name! string", "metadata.namespace string"]
    return _validator([*fields, "metadata.labels{} string", "metadata.annotations{} string"])


def _validator(fields: Sequence[str]) -> jsonschema.Draft202012Validator:
    root: _Schema = {"type": "object"}
    for each in fields:
        path, kind = each.split()
        _add(root, path.split("."), {"type": list(_TYPES[kind])})
    return jsonschema.Draft202012Validator(root)


def _add(schema: _Schema, steps: Sequence[str], leaf: _Schema) -> None:
    """Put `leaf` where the steps lead: `!` ends what must be there, `[]` a list, `{}` a map."""
    name = steps[0].rstrip("!")
    key = name.rstrip("[]{}")
    if steps[0].endswith("!"):
        schema.setdefault("required", []).append(key)
    inner = schema.setdefault("properties", {}).setdefault(key, {})
    for opening, kind, keyword in (("[", "array", "items"), ("{", "object", "additionalProperties")):
        if opening in name:
            inner["type"] = kind
            inner = inner.setdefault(keyword, {})
    if steps[1:]:
        inner["type"] = "object"
        _add(inner, steps[1:], leaf)
    else:
        inner.update(leaf)
