"""Mangled overlays are given to the lint, which must say something of each, and never fall over."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k8s.checks import rendered
from k8s.checks.lint import command

VALUES: list[Any] = [
    *(None, 0, -1, 70000, 10**400, 1.5, True, False),
    *("", "a", "-", ":", "/", "[", "5", "10s", "\x1b[31m", "postgresql://a:hunter2/b@c"),
    *([], {}, [None], [1], [[]], ["a"], [{}], {"a": "b"}, {"a": 1}, {"name": "a"}),
]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield where each part of a value is."""
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


OBJECTS = {name: rendered.load(name) for name in rendered.OVERLAYS}
PLACES = {name: list(places(objects)) for name, objects in OBJECTS.items()}


@st.composite
def mangled(draw: st.DrawFn) -> list[Any]:
    """Return the objects of an overlay with some parts taken out, replaced, or swapped for other parts."""
    name = draw(st.sampled_from(rendered.OVERLAYS))
    objects = copy.deepcopy(OBJECTS[name])
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(PLACES[name]))
        other = draw(st.sampled_from([*VALUES, "part", "nothing"]))
        try:
            parent = at(objects, path)
            if other == "nothing":
                del parent[last]
            else:
                replacement = at(objects, draw(st.sampled_from(PLACES[name]))) if other == "part" else other
                parent[last] = copy.deepcopy(replacement)
        except LookupError, TypeError:  # gone by an earlier change
            continue
    return objects


def at(value: Any, path: Any) -> Any:
    """Return what is there."""
    for key in path:
        value = value[key]
    return value


def names(manifest):
    """Return by what an object is named to the reader."""
    if not isinstance(manifest, dict):
        return ""
    metadata = manifest.get("metadata")
    place = [metadata.get(key) for key in ("name", "namespace")] if isinstance(metadata, dict) else []
    return str([manifest.get("apiVersion"), manifest.get("kind"), *place])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return the path of a file."""
    return tmp_path_factory.mktemp("mangled") / "manifests.json"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(objects=mangled())
def test_mangled_overlays(file, objects):
    """Whatever is mangled, the lint ends with one of its codes, and names what it did not check."""
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    result = CliRunner().invoke(command, [str(file)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = result.output.splitlines()
    assert all(line.startswith(f"{file}: ") and line.isprintable() for line in lines)
    is_unchecked = any(line.startswith(f"{file}: not checked: ") for line in lines)
    assert result.exit_code == (2 if is_unchecked else 1 if lines else 0)
    assert "hunter2" not in result.output or any("hunter2" in names(each) for each in objects)
