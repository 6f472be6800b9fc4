"""Label selectors, as Kubernetes evaluates them."""

from collections.abc import Mapping
from typing import Any


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a label selector matches; an empty one matches everything."""
    wanted = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or []
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(expression, labels) for expression in expressions
    )


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression.get("values", ())
        case "NotIn":
            return value not in expression.get("values", ())
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False  # the API server refuses any other
