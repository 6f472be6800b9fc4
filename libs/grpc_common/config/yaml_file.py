"""Reads the YAML file of a configuration: its values, where each stands, and what is wrong with it.

Whatever the file holds, reading it ends soon, in a value or in a ConfigError.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from grpc_common.config.document import SHOWN, ConfigError, Document, Place, dotted, read_bytes
from grpc_common.config.masking import mask_reprs

_MAX_DEPTH = 32
_MAX_VALUES = 10_000
"""Values in a file, counted again for each alias: a few lines of aliases can stand for billions."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {"null", "bool", "int", "float", "str", "timestamp", "value"}

_AMBIGUOUS = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers that YAML 1.1 reads as nobody means them: 0123 is 83, and 1:30 is 90."""


def read_document(file: Path) -> Document:
    """Return what `file` holds; nothing, if it is empty.

    Raises:
        ConfigError: it can't be read, is no YAML, or holds something else than keys.

    """
    text = _decode(file, read_bytes(file))
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        reader = _Reader(file, loader)
        values = reader.read(root, ()) if root else None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError.of(
            f"{file}:{line}: not YAML: a control character, U+{error.character:04X}"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError.of(f"{file}:{_line(error)}: {_problem(error)}") from None
    if root is None or values is None:
        return Document()
    if not isinstance(values, dict):
        line = root.start_mark.line + 1
        found = "a list" if isinstance(values, list) else "a single value"
        raise ConfigError.of(f"{file}:{line}: must hold keys such as 'server:', not {found}")
    return Document(values, reader.lines, reader.mistakes)


def _decode(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ConfigError.of(
            f"{file}:{line}: not YAML: not UTF-8, because of the byte 0x{byte:02X}"
        ) from None


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _problem(error: yaml.MarkedYAMLError) -> str:
    if isinstance(error, _RefusedError):
        return str(error.problem)
    parts = (mask_reprs(part[: 2 * SHOWN]) for part in (error.context, error.problem) if part)
    return "not YAML: " + ": ".join(parts)


class _RefusedError(yaml.MarkedYAMLError):
    """YAML that is no configuration."""

    def __init__(self, problem: str, node: Any) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """Bounds how deep the file is and how many values it has while it is parsed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._count += 1
        _check_bounds(self._depth, self._count, self.peek_event())  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _check_bounds(depth: int, count: int, node: Any) -> None:
    if depth > _MAX_DEPTH:
        raise _RefusedError(f"nested more than {_MAX_DEPTH} deep, or an alias stands for itself", node)
    if count > _MAX_VALUES:
        raise _RefusedError(f"more than {_MAX_VALUES} values, with what aliases stand for", node)


class _Reader:
    """Makes values of nodes, each with the place where it stands."""

    def __init__(self, file: Path, loader: _Loader) -> None:
        self.lines: dict[Place, int] = {}
        self.mistakes: list[str] = []
        self._file = file
        self._loader = loader
        self._depth = 0
        self._count = 0

    def read(self, node: yaml.Node, place: Place) -> Any:
        self._depth += 1
        self._count += 1
        _check_bounds(self._depth, self._count, node)
        value = self._read(node, place)
        self._depth -= 1
        return value

    def _read(self, node: yaml.Node, place: Place) -> Any:
        match node:
            case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
                return self._mapping(node, place)
            case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
                return [self._at(item, item, (*place, index)) for index, item in enumerate(node.value)]
            case yaml.ScalarNode() if node.tag.removeprefix(_TAG) in _SCALARS:
                return self._scalar(node)
        raise _RefusedError("a tag is not for configurations", node)

    def _at(self, mark: yaml.Node, node: yaml.Node, place: Place) -> Any:
        self.lines[place] = mark.start_mark.line + 1
        return self.read(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merged = self._merge(value, place) | merged
        own: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                continue
            name = self._key(key)
            below = (*place, name)
            if name in own:
                self.mistakes.append(
                    f"{self._file}:{key.start_mark.line + 1}: {dotted(below)}: is there twice"
                )
            own[name] = self._at(key, value, below)
        return merged | own

    def _merge(self, node: yaml.Node, place: Place) -> dict[str, Any]:
        """Return what a key `<<` adds: a mapping, or those of a list, the first of which wins."""
        mappings = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for mapping in mappings:
            if not isinstance(mapping, yaml.MappingNode):
                raise _RefusedError("<< stands before a mapping or a list of mappings", mapping)
            merged = self.read(mapping, place) | merged
        return merged

    def _key(self, node: yaml.Node) -> str:
        """Return a key as it is written: `on` and `1` are no truth value and no number there."""
        if isinstance(node, yaml.ScalarNode) and node.tag.removeprefix(_TAG) in _SCALARS:
            return str(node.value)
        raise _RefusedError("a key must be text", node)

    def _scalar(self, node: yaml.ScalarNode) -> Hashable:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "value"):
            return str(node.value)
        if kind in ("int", "float") and _AMBIGUOUS.fullmatch(node.value):
            raise _RefusedError(f"a number of this form is ambiguous; {_QUOTES}", node)
        try:
            value: Hashable = self._loader.construct_object(node)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):
            raise _RefusedError(f"this is no {kind}; {_QUOTES}", node) from None
        return value


_QUOTES = "write a decimal number, or quotes around a text"
