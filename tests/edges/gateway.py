"""The Envoy of a Gateway, as Envoy Gateway configures it from the gateway-api overlay, without Envoy Gateway.

It is for Envoys whose servers change all the time, and for machines without Go. `gateway_test.py` compares it
with what Envoy Gateway itself makes.

The mapping is that of envoyproxy/gateway (release 1.9):
    internal/gatewayapi: route.go (processGRPCRouteRule), backendtrafficpolicy.go
    internal/xds/translator: route.go (getEffectiveRequestTimeout, idleTimeout, buildRetryPolicy),
        cluster.go (buildXdsCluster, buildXdsOutlierDetection), listener.go (addHCMToXDSListener)
"""

from collections.abc import Sequence
from pathlib import Path

from tests.edges import rate_limit
from tests.edges.envoy_tls import take_tls
from tests.edges.objects import Object, fields, given, of_groups, only
from tests.interop.envoy_proxy import cluster, listener, retry_policy

_GROUPS = ("gateway.networking.k8s.io", "gateway.envoyproxy.io")
_KINDS = ("BackendTrafficPolicy", "ClientTrafficPolicy", "Gateway", "GRPCRoute")

_HTTP2 = {"initial_stream_window_size": 64 * 1024, "initial_connection_window_size": 1024 * 1024}
_BUFFER = 32768


def proxy(objects: Sequence[Object], ports: Sequence[int], secrets: Path) -> tuple[Object, list[Object]]:
    """Return the listener and the clusters for calls to the service, whose servers are on `ports`.

    Args:
        objects: of the overlay.
        ports: of the servers, on 127.0.0.1.
        secrets: the file with the listener's Secret, as `take_tls` has it.

    Raises:
        ValueError: an object says something that is not translated.

    """
    objects = of_groups(objects, *_GROUPS, known=_KINDS)
    spec = only(objects, "GRPCRoute")["spec"]
    fields(spec, "GRPCRoute user-service", "parentRefs", "hostnames", "rules")
    assert spec["parentRefs"] == [{"name": "user-service", "sectionName": "grpc"}]
    policies = _policies(objects)
    assert policies.keys() <= {None, *(rule["name"] for rule in spec["rules"])}, "a policy of no rule"
    rules = [(rule, _merged(policies, rule["name"])) for rule in spec["rules"]]
    routes = [route for rule, policy in rules for route in _routes(rule, policy)]
    # The more exact match wins, wherever its rule stands.
    routes.sort(key=lambda route: "path" not in route["match"])
    host = {"name": "user-service", "domains": spec["hostnames"], "routes": routes}
    return _listener(objects, host, secrets), [_cluster(rule["name"], ports, p) for rule, p in rules]


def _listener(objects: Sequence[Object], host: Object, secrets: Path) -> Object:
    where = "Gateway user-service"
    spec = fields(only(objects, "Gateway")["spec"], where, "gatewayClassName", "listeners")
    [asked] = spec["listeners"]
    fields(asked, where, "name", "hostname", "port", "protocol", "tls", "allowedRoutes")
    assert (asked["name"], asked["protocol"]) == ("grpc", "HTTPS")
    assert asked["tls"] == {
        "mode": "Terminate",
        "certificateRefs": [{"kind": "Secret", "name": "user-service-edge-tls"}],
    }
    result = _sized_listener(only(objects, "ClientTrafficPolicy"), host)
    [manager] = result["filter_chains"][0]["filters"]
    manager["typed_config"]["route_config"]["ignore_port_in_host_matching"] = True
    manager["typed_config"]["http_filters"].insert(0, rate_limit.FILTER)
    # Or callers would say by x-forwarded-for whose calls are counted.
    manager["typed_config"]["use_remote_address"] = True
    take_tls(result, secrets, asked["hostname"])
    return result


def _sized_listener(policy: Object, host: Object) -> Object:
    where = "ClientTrafficPolicy user-service"
    spec = fields(policy["spec"], where, "targetRefs", "connection", "http2")
    http2 = fields(spec.get("http2", {}), where, "initialStreamWindowSize")
    connection = fields(spec.get("connection", {}), where, "bufferLimit")
    window = given(initial_stream_window_size=_bytes(http2.get("initialStreamWindowSize")))
    result = listener(
        [host], codec_type="AUTO", http2_protocol_options=_HTTP2 | {"max_concurrent_streams": 100} | window
    )
    return result | {"per_connection_buffer_limit_bytes": _bytes(connection.get("bufferLimit")) or _BUFFER}


def _bytes(quantity: str | None) -> int | None:
    return None if quantity is None else int(quantity.removesuffix("Mi")) << 20


def _policies(objects: Sequence[Object]) -> dict[str | None, Object]:
    """Return the policies of the rules by their names, and that of the Gateway as None's."""
    policies = {}
    for found in objects:
        if found["kind"] == "BackendTrafficPolicy":
            where, spec = f"BackendTrafficPolicy {found['metadata']['name']}", dict(found["spec"])
            fields(spec, where, "targetRefs", "mergeType", "timeout", "rateLimit", "healthCheck", "retry")
            [target] = spec.pop("targetRefs")
            assert target["name"] == "user-service", where
            policies[target["sectionName"] if target["kind"] == "GRPCRoute" else None] = spec
    return policies


def _merged(policies: dict[str | None, Object], rule: str) -> Object:
    """Return what holds for a rule: its own policy, merged into that of the Gateway if it says so."""
    of_gateway, of_rule = policies.get(None, {}), dict(policies.get(rule, {}))
    if of_rule and of_rule.pop("mergeType", None) != "StrategicMerge":
        return of_rule
    assert not of_gateway.keys() & of_rule.keys(), "this test merges no fields of fields"
    return of_gateway | of_rule


def _routes(rule: Object, policy: Object) -> list[Object]:
    where = f"GRPCRoute user-service, rule {rule['name']}"
    fields(rule, where, "name", "matches", "backendRefs")
    assert rule["backendRefs"] == [{"name": "user-service", "port": 50051}], where
    timeout = fields(policy.get("timeout", {}), where, "tcp", "http")
    action = {"cluster": rule["name"]}
    if http := fields(timeout.get("http", {}), where, "requestTimeout"):
        # Without one Envoy's own holds: 15 s. The idle timeout is an hour at least.
        action |= {"timeout": http["requestTimeout"], "idle_timeout": "3600s"}
    if "retry" in policy:
        action |= {"retry_policy": _retries(policy["retry"], where)}
    limits = rate_limit.of_route(policy["rateLimit"], where) if "rateLimit" in policy else {}
    return [{"match": _match(match, where), "route": action} | limits for match in rule["matches"]]


def _match(match: Object, where: str) -> Object:
    method = fields(fields(match, where, "method")["method"], where, "service", "method")
    if "method" in method:
        return {"path": f"/{method['service']}/{method['method']}"}
    return {"path_separated_prefix": f"/{method['service']}"}


def _retries(retry: Object, where: str) -> Object:
    fields(retry, where, "numRetries", "retryOn", "perRetry")
    return retry_policy(
        num_retries=retry["numRetries"],
        retry_on=",".join(fields(retry["retryOn"], where, "triggers")["triggers"]),
        per_try_timeout=fields(retry.get("perRetry", {}), where, "timeout").get("timeout"),
    )


def _cluster(name: str, ports: Sequence[int], policy: Object) -> Object:
    where = "BackendTrafficPolicy"
    tcp = fields(policy.get("timeout", {}).get("tcp", {}), where, "connectTimeout")
    passive = fields(policy.get("healthCheck", {}), where, "passive").get("passive")
    return cluster(
        name,
        ports,
        _HTTP2,
        connect_timeout=tcp.get("connectTimeout", "10s"),
        lb_policy="LEAST_REQUEST",
        circuit_breakers={"thresholds": [{"max_retries": 1024}]},
        **given(outlier_detection=passive and _outlier_detection(passive, where)),
        per_connection_buffer_limit_bytes=_BUFFER,
    )


def _outlier_detection(passive: Object, where: str) -> Object:
    # The defaults of the resource's own schema.
    asked = {"interval": "3s", "baseEjectionTime": "30s", "maxEjectionPercent": 10, "consecutive5XxErrors": 5}
    asked |= fields(passive, where, *asked, "consecutiveGatewayErrors")
    gateway_errors = asked.get("consecutiveGatewayErrors")
    return given(
        interval=asked["interval"],
        base_ejection_time=asked["baseEjectionTime"],
        max_ejection_percent=asked["maxEjectionPercent"],
        consecutive_5xx=asked["consecutive5XxErrors"],
        consecutive_gateway_failure=gateway_errors,
        enforcing_consecutive_gateway_failure=100 if gateway_errors is not None else None,
    )
