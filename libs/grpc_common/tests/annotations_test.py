"""Python 3.13, unlike 3.14, evaluates annotations where they stand: what they name must be there."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import grpc_common

ROOT = Path(grpc_common.__file__).parent
FILES = [file for file in ROOT.rglob("*.py") if not file.match("*_test.py")]


def only_for_types(tree: ast.Module) -> set[str]:
    """Return what a module imports for type checkers alone."""
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    imports = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def evaluated(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[int, str, str]]:
    """Yield line, name and surrounding class of each name in an annotation that is evaluated at import."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from evaluated(node.body, node.name)
            continue
        annotations: list[ast.expr | None] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            annotations = [
                node.returns,
                *(arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg)),
            ]
        elif isinstance(node, ast.AnnAssign):
            annotations = [node.annotation]
        for annotation in filter(None, annotations):
            yield from (
                (node.lineno, each.id, owner) for each in ast.walk(annotation) if isinstance(each, ast.Name)
            )


def too_early(source: str) -> list[str]:
    """Return which names of a module's annotations are not there yet when they are evaluated."""
    tree = ast.parse(source)
    if any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body):
        return []
    classes = {node.name: node.lineno for node in tree.body if isinstance(node, ast.ClassDef)}
    missing = only_for_types(tree)
    return [
        f"{line}: {name}"
        for line, name, owner in evaluated(tree.body)
        if name in missing or name == owner or classes.get(name, 0) > line
    ]


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_annotations_name_what_is_there(file):
    """Or the module begins with `from __future__ import annotations`."""
    assert too_early(file.read_text()) == []


def test_what_is_not_there():
    """A later class, the class itself and an import for types alone are found."""
    block = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import T\n"
    code = "def f(x: T) -> L: ...\nclass L:\n    def g(self) -> list[L]: ...\n    x: T\n"
    assert too_early(block + code) == ["4: L", "4: T", "6: L", "7: T"]
    assert too_early("from __future__ import annotations\n" + block + code) == []
