"""Fields of a Deployment's pods that others set: they stay, and no file of the repository shows them."""

import json
import re
from collections.abc import Iterator
from typing import Any

import click

from tools.kubernetes.deploy.kubectl import Kubectl, KubectlError
from tools.kubernetes.deploy.live import find
from tools.kubernetes.deploy.manifests import MANAGER, Object, name_of
from tools.kubernetes.deploy.text import printable

_PATH = ("f:spec", "f:template")

_MOST = 20
"""Lines that are told of one Deployment."""

_LONGEST = 60
"""Characters of a value."""

_SECRET = re.compile(r"token|passw|secret|credential|key|auth|dsn", re.IGNORECASE)
"""Names of fields and annotations whose values are not shown."""

type _Path = tuple[str, ...]
"""Keys of managedFields: `f:NAME` of a field, `k:{JSON}` of a list's item by its keys, `v:JSON` of a set."""


def foreign_fields(kubectl: Kubectl, deployment: Object) -> list[str]:
    """Return a line for each field of the pods that another manager owns and that is not rendered.

    Args:
        kubectl: for the Deployment's cluster.
        deployment: as it is rendered.

    Raises:
        KubectlError: the cluster can't tell.

    """
    live = find(kubectl, deployment)
    lines = list(_lines(live, deployment)) if live else []
    if not lines:
        return []
    more = [f"    and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
    head = f"{name_of(deployment)}: others set fields of its pods that are not rendered, and they stay:"
    return [head, *lines[:_MOST], *more]


def tell_foreign_fields(kubectl: Kubectl, deployment: Object) -> None:
    """Print what others set in the pods that did not come up."""
    try:
        lines = foreign_fields(kubectl, deployment)
    except KubectlError as error:
        lines = [f"    {error}"]  # what failed must not be hidden by what may be its reason
    for line in lines:
        click.secho(line, fg="yellow", err=True)


def _lines(live: Object, rendered: Object) -> Iterator[str]:
    for entry in live["metadata"].get("managedFields", []):
        # What a webhook changes in a request of ours is ours by an update.
        who = "a webhook" if entry["manager"] == MANAGER else entry["manager"]
        is_ours = entry["manager"] == MANAGER and entry["operation"] == "Apply"
        fields = entry.get("fieldsV1", {}).get(_PATH[0], {}).get(_PATH[1], {})
        if not is_ours and not entry.get("subresource"):
            for path in _foreign(fields, _PATH, rendered):
                yield printable(f"    {_text(path)}{_value(live, path)} ({who} at {entry.get('time')})")


def _foreign(fields: Object, path: _Path, rendered: Object) -> Iterator[_Path]:
    """Yield the paths of fields that are not rendered; of an item of a list that is not, its own alone."""
    is_rendered = bool(_found(rendered, path))
    children = [key for key in fields if key != "."]
    if not children or (path[-1].startswith("k:") and not is_rendered):
        if not is_rendered:
            yield path
        return
    for key in children:
        yield from _foreign(fields[key], (*path, key), rendered)


def _found(value: Any, path: _Path) -> list[Any]:
    """Return a list with the value at a path, or an empty one."""
    for key in path:
        kind, _, name = key.partition(":")
        if kind == "f" and isinstance(value, dict) and name in value:
            value = value[name]
        elif kind == "k" and (items := [each for each in value or [] if _is_named(each, json.loads(name))]):
            value = items[0]
        elif kind == "v" and json.loads(name) in (value or []):
            value = json.loads(name)
        else:
            return []
    return [value]


def _is_named(item: Object, keys: Object) -> bool:
    # A key with a default, such as a port's protocol, need not be rendered.
    return any(key in item for key in keys) and all(item.get(key, keys[key]) == keys[key] for key in keys)


def _text(path: _Path) -> str:
    text = ""
    for key in path:
        kind, _, name = key.partition(":")
        if kind == "f":
            text += f".{name}"
        else:
            named = json.loads(name)
            text += f"[{','.join(f'{key}={named[key]}' for key in named) if kind == 'k' else name}]"
    return text.removeprefix(".")


def _value(live: Object, path: _Path) -> str:
    """Return ` = VALUE` of what is short and no secret: variables may be."""
    found = _found(live, path)
    if not found or isinstance(found[0], dict | list) or "f:env" in path or _SECRET.search(path[-1]):
        return ""
    text = json.dumps(found[0])
    return f" = {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'}"
