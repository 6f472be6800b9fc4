"""Edges without their rate limits: one machine that tests is one client to them."""

import copy
from collections.abc import Sequence

from tests.edges.objects import Object

_NGINX = "nginx.ingress.kubernetes.io/limit-"


def without_limits(overlay: Sequence[Object]) -> list[Object]:
    """Return the objects of an overlay, whose edge lets one client call as often as it likes."""
    objects = copy.deepcopy(list(overlay))
    limits = [each["metadata"]["name"] for each in objects if "rateLimit" in each.get("spec", {})]
    assert limits or any(_NGINX in str(each) for each in objects), "the edge has no limits"
    for each in objects:
        _relax(each, limits)
    return [
        each for each in objects if each["kind"] != "Middleware" or each["metadata"]["name"] not in limits
    ]


def _relax(manifest: Object, limits: Sequence[str]) -> None:
    if manifest["kind"] == "BackendTrafficPolicy":
        manifest["spec"].pop("rateLimit", None)
    if manifest["kind"] == "Ingress":
        given = manifest["metadata"]["annotations"]
        for name in [name for name in given if name.startswith(_NGINX)]:
            del given[name]
    if manifest["kind"] == "IngressRoute":
        for route in manifest["spec"]["routes"]:
            kept = [each for each in route["middlewares"] if each["name"] not in limits]
            route["middlewares"] = kept
