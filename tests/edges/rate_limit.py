"""The local rate limit of a BackendTrafficPolicy, as Envoy Gateway configures Envoy for it.

The mapping is that of envoyproxy/gateway (release 1.9), internal/xds/translator, local_ratelimit.go.
"""

from tests.edges.objects import Object, fields
from tests.interop.envoy_proxy import type_url

_NAME = "envoy.filters.http.local_ratelimit"
_TYPE = {
    "@type": type_url("filters.http.local_ratelimit.v3.LocalRateLimit"),
    "stat_prefix": "http_local_rate_limiter",
}
_ALL = {"default_value": {"numerator": 100}}
_SECONDS = {"Second": 1, "Minute": 60, "Hour": 3600}

FILTER = {"name": _NAME, "typed_config": _TYPE | {"max_dynamic_descriptors": 10000}}
"""Limits nothing by itself: routes do."""


def of_route(policy: Object, where: str) -> Object:
    """Return what a policy adds to a route.

    Raises:
        ValueError: it says something that is not translated.

    """
    fields(policy, where, "type", "local")
    assert policy["type"] == "Local", where
    rules = [
        _rule(number, rule, where)
        for number, rule in enumerate(fields(policy["local"], where, "rules")["rules"])
    ]
    config = _TYPE | {
        "token_bucket": _bucket({"requests": 2**32 - 1, "unit": "Second"}),
        "filter_enabled": _ALL,
        "filter_enforced": _ALL,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "always_consume_default_token_bucket": False,
        "rate_limits": [actions for actions, _ in rules],
        "descriptors": [descriptor for _, descriptor in rules],
    }
    return {"typed_per_filter_config": {_NAME: config}}


def _rule(number: int, rule: Object, where: str) -> tuple[Object, Object]:
    """Return the actions and the descriptor of a limit for each address of a range."""
    [selector] = fields(rule, where, "clientSelectors", "limit")["clientSelectors"]
    source = fields(fields(selector, where, "sourceCIDR")["sourceCIDR"], where, "type", "value")
    assert source["type"] == "Distinct", where
    prefix, length = source["value"].split("/")
    ranges = {"ranges": [{"address_prefix": prefix, "prefix_len": int(length)}]}
    masked, remote = f"rule-{number}-masked-remote-address", f"rule-{number}-remote-address"
    actions = [
        _action(masked, source["value"], ranges),
        _action(remote, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", ranges),
    ]
    entries = [{"key": masked, "value": source["value"]}, {"key": remote}]
    limit = fields(rule["limit"], where, "requests", "unit")
    return {"actions": actions}, {"entries": entries, "token_bucket": _bucket(limit)}


def _action(key: str, value: str, ranges: Object) -> Object:
    return {
        "remote_address_match": {"descriptor_key": key, "descriptor_value": value, "address_matcher": ranges}
    }


def _bucket(limit: Object) -> Object:
    requests = limit["requests"]
    return {
        "max_tokens": requests,
        "tokens_per_fill": requests,
        "fill_interval": f"{_SECONDS[limit['unit']]}s",
    }
