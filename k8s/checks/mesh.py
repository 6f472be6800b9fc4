"""Which routes of an Istio VirtualService may take a call."""

import re
from collections.abc import Iterator

from k8s.checks.manifests import Manifest, find

_CERTAIN = {True}
"""The answers of a route that takes a path, whatever else the call has: headers may decide otherwise."""


def istio_routes(virtual_service: Manifest, path: str) -> Iterator[tuple[str, Manifest]]:
    """Yield field and content of each http route that may take a path: the first that matches does."""
    for field, route in find(virtual_service, "spec.http[]"):
        answers = {answer for match in route.get("match") or [{}] for answer in _answers(match, path)}
        if True in answers:
            yield field, route
        if any(_answers(match, path) == _CERTAIN for match in route.get("match") or [{}]):
            return


def _answers(match: Manifest, path: str) -> set[bool]:
    uri = match.get("uri") or {"prefix": ""}
    if match.get("ignoreUriCase") and "regex" not in uri:
        uri, path = {kind: value.lower() for kind, value in uri.items()}, path.lower()
    takes = (
        uri.get("exact") == path
        or ("prefix" in uri and path.startswith(uri["prefix"]))
        or ("regex" in uri and re.fullmatch(uri["regex"], path) is not None)
    )
    other_conditions = match.keys() - {"uri", "name", "ignoreUriCase"}
    return ({True, False} if other_conditions else _CERTAIN) if takes else {False}
