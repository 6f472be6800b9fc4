"""Label selectors, of the shapes that the lint and the API server let through."""

import json
from typing import Any

from tools.kubernetes.labels import matches


def fuzz(data: bytes) -> None:
    """A selector selects what Kubernetes' words say; the lines are labels, and a selector, both in JSON."""
    first, _, second = data.partition(b"\n")
    try:
        labels, selector = json.loads(first), json.loads(second)
    except ValueError, RecursionError:
        return
    if not (is_texts(labels) and is_selector(selector)):
        return
    wanted = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or []
    expected = wanted.items() <= labels.items() and all(met(each, labels) for each in expressions)
    assert matches(selector, labels) == expected


def met(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    """Return whether labels meet a requirement; a label that is not there is not in any values."""
    there = {labels[expression["key"]]} if expression["key"] in labels else set()
    values = set(expression.get("values", ()))
    meets = {"In": there & values, "NotIn": not there & values, "Exists": there, "DoesNotExist": not there}
    return bool(meets.get(expression["operator"]))


def is_texts(value: object) -> bool:
    """Return whether labels have the shape of labels."""
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def is_selector(value: object) -> bool:
    """Return whether a selector has the shape of one."""
    if not (isinstance(value, dict) and is_texts(value.get("matchLabels") or {})):
        return False
    expressions = value.get("matchExpressions") or []
    return isinstance(expressions, list) and all(map(is_expression, expressions))


def is_expression(value: object) -> bool:
    """Return whether a requirement has the shape of one."""
    if not (isinstance(value, dict) and isinstance(value.get("key"), str)):
        return False
    values = value.get("values", [])
    is_list = isinstance(values, list) and all(isinstance(each, str) for each in values)
    return is_list and isinstance(value.get("operator"), str)
