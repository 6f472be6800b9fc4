"""The Envoys of a caller's sidecar and of an ingress gateway, as Istio makes them of the istio overlay.

The mapping is that of istio/istio (release 1.32), in pilot/pkg/networking/core:
    route/route.go (TranslateRoute, setTimeout), route/retry/retry.go (ConvertPolicy), listener_builder.go,
    cluster_traffic_policy.go (applyConnectionPool, applyLoadBalancer, applyOutlierDetection),
    gateway.go (buildGatewayHTTPRouteConfig, createGatewayHTTPFilterChainOpts), envoyfilter/listener_patch.go
What the server's own sidecar does is in istio_server.py, which has them speak mutual TLS too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.edges.envoy_tls import take_tls
from tests.edges.objects import Object, fields, given, named, of_groups, only
from tests.interop.envoy_proxy import cluster, listener, retry_policy

_HOST = "user-service"
_PORT = 50051
_KINDS = ("DestinationRule", "Gateway", "VirtualService")

_NEVER = "0s"
"""Istio itself sets no stream_idle_timeout, so that the route's timeouts are the only ones."""

_UNLIMITED = 2**32 - 1

_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
"""What Istio repeats unless it is told otherwise, twice."""


def sidecar(objects: Sequence[Object], ports: Sequence[int]) -> tuple[Object, list[Object]]:
    """Return the listener and the clusters for calls to the service, whose servers are on `ports`.

    Raises:
        ValueError: an object says something that is not translated.

    """
    objects = of_groups(objects, "networking.istio.io", known=_KINDS)
    rule, routes = only(objects, "DestinationRule"), named(objects, "VirtualService", "user-service")
    namespace = routes["metadata"]["namespace"]
    names = [
        f"{host}{suffix}"
        for host in fields(routes["spec"], "VirtualService user-service", "hosts", "http")["hosts"]
        for suffix in ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")
    ]
    host = _virtual_host(routes, [*names, *(f"{name}:{_PORT}" for name in names)])
    return listener([host], stream_idle_timeout=_NEVER), [_cluster(rule, ports)]


def gateway(
    objects: Sequence[Object], beside: Sequence[Object], ports: Sequence[int], certificate: Path
) -> tuple[Object, list[Object]]:
    """Return the listener and the clusters of the ingress gateway.

    Args:
        objects: of the overlay.
        beside: what is in the namespace of the gateway's pods.
        ports: of the servers, on 127.0.0.1.
        certificate: the folder with tls.crt and tls.key, as the Secret of the Gateway has them.

    Raises:
        ValueError: an object says something that is not translated.

    """
    objects = of_groups(objects, "networking.istio.io", known=_KINDS)
    host = _host_of_gateway(only(objects, "Gateway"))
    routes = named(objects, "VirtualService", "user-service-gateway")
    spec = fields(routes["spec"], "VirtualService user-service-gateway", "gateways", "hosts", "http")
    assert (spec["gateways"], spec["hosts"]) == (["user-service"], [host])
    result = listener(
        [_virtual_host(routes, [host])],
        codec_type="AUTO",
        stream_idle_timeout=_NEVER,
        # Or callers would say by x-forwarded-for whose calls are counted.
        use_remote_address=True,
    )
    [manager] = result["filter_chains"][0]["filters"]
    manager["typed_config"]["route_config"]["ignore_port_in_host_matching"] = True
    manager["typed_config"]["http_filters"][:0] = _filters(beside, host)
    take_tls(result, certificate, host=host)
    return result, [_cluster(only(objects, "DestinationRule"), ports)]


def _host_of_gateway(gateway: Object) -> str:
    where = "Gateway user-service"
    spec = fields(gateway["spec"], where, "selector", "servers")
    [server] = spec["servers"]
    fields(server, where, "port", "hosts", "tls")
    assert server["port"] == {"name": "https", "number": 443, "protocol": "HTTPS"}, where
    assert server["tls"] == {"mode": "SIMPLE", "credentialName": "user-service-gateway-tls"}, where
    [host] = server["hosts"]
    return str(host).removeprefix("./")


def _filters(beside: Sequence[Object], host: str) -> list[Object]:
    """Return the filters that EnvoyFilters put before the router, for the calls to a host."""
    match = {
        "context": "GATEWAY",
        "listener": {
            "filterChain": {
                "sni": host,
                "filter": {
                    "name": "envoy.filters.network.http_connection_manager",
                    "subFilter": {"name": "envoy.filters.http.router"},
                },
            }
        },
    }
    found = of_groups(beside, "networking.istio.io", known=["EnvoyFilter"])
    patches = [
        patch
        for each in found
        for patch in fields(each["spec"], "EnvoyFilter", "priority", "workloadSelector", "configPatches")[
            "configPatches"
        ]
    ]
    for patch in patches:
        fields(patch, "EnvoyFilter", "applyTo", "match", "patch")
        fields(patch["patch"], "EnvoyFilter", "operation", "value")
        assert (patch["applyTo"], patch["match"]) == ("HTTP_FILTER", match)
        assert patch["patch"]["operation"] == "INSERT_BEFORE"
    return [patch["patch"]["value"] for patch in patches]


def _virtual_host(service: Object, domains: Sequence[str]) -> Object:
    where = f"VirtualService {service['metadata']['name']}"
    routes = [_route(route, f"{where}, route {route.get('name')}") for route in service["spec"]["http"]]
    return {"name": "user-service", "domains": domains, "routes": routes}


def _route(route: Object, where: str) -> Object:
    fields(route, where, "name", "match", "route", "timeout", "retries")
    assert route["route"] == [{"destination": {"host": _HOST, "port": {"number": _PORT}}}], where
    # Istio's default is no timeout. As max_grpc_timeout it bounds the deadline that the caller has sent.
    timeout = route.get("timeout", "0s")
    retries = _retries(route.get("retries"), where)
    action = given(cluster=_HOST, timeout=timeout, max_grpc_timeout=timeout, retry_policy=retries)
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


def _cluster(rule: Object, ports: Sequence[int]) -> Object:
    where = "DestinationRule user-service"
    spec = fields(rule["spec"], where, "host", "trafficPolicy")
    assert spec["host"] == _HOST, where
    policy = fields(spec["trafficPolicy"], where, "connectionPool", "loadBalancer", "outlierDetection")
    pool = fields(fields(policy["connectionPool"], where, "tcp")["tcp"], where, "connectTimeout")
    balancer = fields(policy["loadBalancer"], where, "simple", "localityLbSetting")
    assert balancer["localityLbSetting"] == {"enabled": False}, where
    limits = ["max_connections", "max_pending_requests", "max_requests", "max_retries"]
    return cluster(
        _HOST,
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
