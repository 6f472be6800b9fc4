"""Reads files of manifests as Kubernetes does, and refuses what it would not read, or reads in two ways."""

import json
import math
import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

_DEEPEST = 100
"""How deep an object may be nested; custom resources reach 30."""

_LARGEST = 100_000_000
"""How many bytes a file may have; a cluster's API server takes objects of a megabyte or two."""

_QUOTED = re.compile(r"(tag|tag handle) ['\"].*", re.DOTALL)
"""Where a message of PyYAML's quotes a tag, which a password that begins with ! is taken for."""


class UnreadableError(Exception):
    """A file has no manifests; the message says why, and what would be right."""


def read_objects(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of YAML or JSON, those within lists too, without fields that are null.

    Raises:
        UnreadableError: it can't be read, or one of its documents is no object.

    """
    try:
        documents = list(_documents(_text_of(file)))
        objects = [_plain(each) for document in documents for each in _items(document)]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UnreadableError(f"not read: {_reason(error)}") from None
    if not objects:
        raise UnreadableError("has no object; name what `kustomize build` printed")
    return objects


def _text_of(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"is larger than {_LARGEST} bytes")
    return content.decode("utf-8")


def _reason(error: Exception) -> str:
    match error:
        case OSError():
            return error.strerror or "the system does not say why"
        case RecursionError():
            return f"is nested deeper than {_DEEPEST}"
        case UnicodeDecodeError():
            return f"not YAML: byte {error.start} is not UTF-8"
        case yaml.MarkedYAMLError(problem=problem, problem_mark=mark) if mark:
            # Not as text: that quotes the line, which may hold a secret.
            what = _QUOTED.sub(r"\1; text that begins with ! needs quotes", problem or "")
            return f"not YAML: {what}, in line {mark.line + 1}, column {mark.column + 1}"
        case yaml.YAMLError():
            return f"not YAML: {' '.join(str(error).split())}"
    return str(error)


def _documents(text: str) -> Iterator[Any]:
    """Yield the documents; JSON is read as such, as YAML has no tabs."""
    if text.lstrip().startswith("{"):
        try:
            yield json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
        except json.JSONDecodeError:
            pass
        else:
            return
    yield from yaml.load_all(text, _Loader)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"has a number of {len(text)} digits") from None


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice in one place; leave one out")
        found[key] = value
    return found


class _Loader(yaml.CSafeLoader):
    """Reads what JSON has, as Kubernetes makes JSON of YAML.

    Its parser is libyaml, of which Kubernetes' is a port; PyYAML's own takes seconds for some brackets.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        if node in self.constructed_objects or node in self.recursive_objects:
            raise yaml.constructor.ConstructorError(
                None, None, "has an alias for this, which `kustomize build` writes out", node.start_mark
            )
        try:
            return super().construct_object(node, deep)
        except IndexError, KeyError, TypeError, ValueError:
            if not isinstance(node, yaml.ScalarNode):
                raise
            # Their messages quote the value, which may be a secret.
            what = f"has a value that is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: ARG002, FBT001, FBT002
        # Kubernetes takes numbers and the like for the names that they are written as.
        keys = [each.value for each, _ in node.value if isinstance(each, yaml.ScalarNode)]
        if len(keys) != len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, "has a key that is no string", node.start_mark
            )
        values = (self.construct_object(value, deep=True) for _, value in node.value)
        found: dict[Hashable, Any] = {}
        found.update(_unique(zip(keys, values, strict=True)))
        return found


_Loader.yaml_constructors = {
    tag: function
    for tag, function in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge", ":value"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _items(document: Any) -> list[Any]:
    """Return what is in a list such as `kubectl get` prints, or the document itself if it is not empty."""
    if document is None:
        return []
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str):
        raise ValueError("has a document without kind; name what `kustomize build` printed")  # noqa: TRY004 (of what is read)
    if not kind.endswith("List") or "items" not in document:
        return [document]
    items = document["items"]
    if not isinstance(items, list) or not items:
        raise ValueError(f"has a {kind} without an item")
    return [inner for each in items for inner in _items(each if each is not None else {})]


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value without fields that are null, which are unset to Kubernetes."""
    if depth > _DEEPEST:
        raise RecursionError
    match value:
        case dict():
            return {_text(key): _plain(each, depth + 1) for key, each in value.items() if each is not None}
        case list():
            return [_plain(each, depth + 1) for each in value]
        case str():
            return _text(value)
        case float() if not math.isfinite(value):
            raise ValueError(f"has the number {value}, which JSON has not")
    return value


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("has half of a character, such as \\ud800 alone") from None
    return value
