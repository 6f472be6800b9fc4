"""The Envoy of a caller's sidecar, as Istio configures it from the istio overlay.

The mapping is that of istio/istio (release 1.32), in pilot/pkg/networking/core:
    route/route.go (TranslateRoute, setTimeout), route/retry/retry.go (ConvertPolicy), listener_builder.go,
    cluster_traffic_policy.go (applyConnectionPool, applyLoadBalancer, applyOutlierDetection)
Mutual TLS between sidecars, and what the server's own sidecar does, are left out.
"""

from collections.abc import Sequence
from typing import Any

from tests.edges.objects import Object, fields, given, of_groups, only
from tests.interop.envoy_proxy import cluster, listener, retry_policy

_PORT = 50051
_UNLIMITED = 2**32 - 1

_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
"""What Istio repeats unless it is told otherwise, twice."""


def sidecar(objects: Sequence[Object], ports: Sequence[int]) -> tuple[Object, list[Object]]:
    """Return the listener and the clusters for calls to the service, whose servers are on `ports`.

    Raises:
        ValueError: an object says something that is not translated.

    """
    objects = of_groups(objects, "networking.istio.io", known=["DestinationRule", "VirtualService"])
    rule, routes = only(objects, "DestinationRule"), only(objects, "VirtualService")
    name = rule["spec"]["host"]
    # Istio itself sets no stream_idle_timeout, so that the route's timeouts are the only ones.
    return listener([_virtual_host(routes, name)], stream_idle_timeout="0s"), [_cluster(rule, name, ports)]


def _virtual_host(service: Object, destination: str) -> Object:
    where, namespace = "VirtualService user-service", service["metadata"]["namespace"]
    spec = fields(service["spec"], where, "hosts", "http")
    names = [
        f"{host}{suffix}"
        for host in spec["hosts"]
        for suffix in ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")
    ]
    return {
        "name": "user-service",
        "domains": [*names, *(f"{name}:{_PORT}" for name in names)],
        "routes": [
            _route(route, f"{where}, route {route.get('name')}", destination) for route in spec["http"]
        ],
    }


def _route(route: Object, where: str, destination: str) -> Object:
    fields(route, where, "name", "match", "route", "timeout", "retries")
    assert route["route"] == [{"destination": {"host": destination, "port": {"number": _PORT}}}], where
    # Istio's default is no timeout. As max_grpc_timeout it bounds the deadline that the caller has sent.
    timeout = route.get("timeout", "0s")
    retries = _retries(route.get("retries"), where)
    action = given(cluster=destination, timeout=timeout, max_grpc_timeout=timeout, retry_policy=retries)
    return {"match": _match(route, where), "route": action}


def _match(route: Object, where: str) -> Object:
    [match] = route["match"]
    uri = fields(fields(match, where, "uri")["uri"], where, "exact", "prefix")
    return given(path=uri.get("exact"), prefix=uri.get("prefix"))


def _retries(retries: Object | None, where: str) -> Object | None:
    if retries is None:
        return retry_policy(num_retries=2, retry_on=_RETRY_ON)
    fields(retries, where, "attempts", "retryOn", "perTryTimeout")
    if retries["attempts"] == 0:
        return None
    return retry_policy(
        num_retries=retries["attempts"],
        retry_on=retries.get("retryOn", _RETRY_ON),
        per_try_timeout=retries.get("perTryTimeout"),
    )


def _cluster(rule: Object, name: str, ports: Sequence[int]) -> Object:
    where = "DestinationRule user-service"
    spec = fields(rule["spec"], where, "host", "trafficPolicy")
    policy = fields(spec["trafficPolicy"], where, "connectionPool", "loadBalancer", "outlierDetection")
    pool = fields(fields(policy["connectionPool"], where, "tcp")["tcp"], where, "connectTimeout")
    balancer = fields(policy["loadBalancer"], where, "simple", "localityLbSetting")
    assert balancer["localityLbSetting"] == {"enabled": False}, where
    limits = ["max_connections", "max_pending_requests", "max_requests", "max_retries"]
    return cluster(
        name,
        ports,
        connect_timeout=pool["connectTimeout"],
        lb_policy=balancer["simple"],
        circuit_breakers={"thresholds": [dict.fromkeys(limits, _UNLIMITED)]},
        outlier_detection=_outlier_detection(policy["outlierDetection"], where),
        common_lb_config={"healthy_panic_threshold": {"value": 0}},
    )


def _outlier_detection(detection: Object, where: str) -> dict[str, Any]:
    thresholds = {
        "consecutive5xxErrors": "consecutive_5xx",
        "consecutiveGatewayErrors": "consecutive_gateway_failure",
    }
    rest = {
        "interval": "interval",
        "baseEjectionTime": "base_ejection_time",
        "maxEjectionPercent": "max_ejection_percent",
    }
    fields(detection, where, *thresholds, *rest)
    result: dict[str, Any] = {"enforcing_success_rate": 0}
    for name, value in detection.items():
        if name in thresholds:
            result[thresholds[name]] = value
            result[f"enforcing_{thresholds[name]}"] = 100 if value else 0
        else:
            result[rest[name]] = value
    return result
