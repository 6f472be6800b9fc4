"""The folders are the architecture: imports point one way, and never in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import grpc_common

ROOT = Path(grpc_common.__file__).parent

# Each may import what is before it.
LAYERS = [{"core"}, {"observe", "tls"}, {"config"}, {"server", "client"}, {"commands", "testing"}]
RANK = {folder: rank for rank, folders in enumerate(LAYERS) for folder in folders}


def modules() -> dict[str, Path]:
    """Return the modules in the folders, by name."""
    files = [file for file in ROOT.rglob("*/*.py") if not file.match("*_test.py")]
    names = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in files]
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            candidates = (name, name.rpartition(".")[0])
            yield from [candidate for candidate in candidates if candidate in known][:1]


KNOWN = modules()
GRAPH = {name: set(imports(file, KNOWN)) - {name} for name, file in KNOWN.items()}


def folder(module: str) -> str:
    """Return the folder that a module is in."""
    return module.split(".")[1]


@pytest.mark.parametrize("module", [name for name in KNOWN if name.count(".") > 1])
def test_imports_point_one_way(module):
    """A module imports its own folder's and those of the layers below."""
    ours = folder(module)
    wrong = [other for other in GRAPH[module] if folder(other) != ours and RANK[folder(other)] >= RANK[ours]]
    assert wrong == []


def test_no_circle():
    """No module imports itself by way of others, not even for its types."""
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_folder_has_a_layer():
    """The layers name each folder, and nothing else."""
    assert {folder(name) for name in KNOWN} == set(RANK)
