import pytest

from k8s.checks.rate_limits import limit_calls_from_outside
from k8s.checks.testing import REMOVED, changed, texts

NGINX = "metadata.annotations[nginx.ingress.kubernetes.io/limit-rps]"
OF_GATEWAY = ("BackendTrafficPolicy/user-service", "spec.rateLimit", REMOVED)
OF_ISTIO = (
    "VirtualService/user-service-gateway",
    "metadata.annotations[grpc-on-kubernetes/rate-limit]",
    REMOVED,
)
BY_HEADER = {"requestHeaderName": "x-user"}
REPLACES = ("BackendTrafficPolicy/user-service-list-users", "spec.mergeType", REMOVED)


@pytest.mark.parametrize(
    ("name", "change", "where"),
    [
        (
            "prod",
            ("IngressRoute/user-service", "spec.routes.0.middlewares", [{"name": "user-service-retry"}]),
            1,
        ),
        ("prod", ("IngressRoute/user-service", "spec.routes.0.middlewares", REMOVED), 1),
        ("traefik", ("Middleware/user-service-rate-limit", "spec", {"compress": {}}), 1),
        ("nginx-ingress", ("Ingress/user-service", NGINX, REMOVED), 1),
        ("nginx-ingress", ("Ingress/user-service", NGINX, "0"), 1),
        ("nginx-ingress", ("Ingress/user-service", NGINX, "many"), 1),
        ("prod", ("Middleware/user-service-rate-limit", "spec.rateLimit.average", 0), 1),
        ("prod", ("Middleware/user-service-rate-limit", "spec.rateLimit.sourceCriterion", BY_HEADER), 1),
        ("gateway-api", OF_GATEWAY, 3),
        ("gateway-api", REPLACES, 1),
        ("istio", OF_ISTIO, 3),
    ],
)
def test_edge_without_a_limit(name, change, where):
    """An edge whose limit is gone, empty, or replaced by the policy of one rule, limits nobody."""
    found = texts(limit_calls_from_outside, changed(name, change))
    assert len(found) == where
    assert all("nothing limits how often one may call" in text for text in found)


def test_route_of_no_method():
    """What leads to no method needs no limit."""
    rule = ("IngressRoute/user-service", "spec.routes.0.match", "PathPrefix(`/grpc.health.v1.Health/`)")
    alone = ("IngressRoute/user-service", "spec.routes.0.middlewares", REMOVED)
    assert texts(limit_calls_from_outside, changed("prod", rule, alone)) == []


def test_limit_in_a_chain():
    """A chain of middlewares limits as those in it do."""
    manifests = changed("prod", ("IngressRoute/user-service", "spec.routes.0.middlewares", [{"name": "all"}]))
    metadata = {"name": "all", "namespace": "user-service"}
    spec = {"chain": {"middlewares": [{"name": "user-service-rate-limit"}]}}
    manifests.objects.append({"kind": "Middleware", "metadata": metadata, "spec": spec})
    assert texts(limit_calls_from_outside, manifests) == []


@pytest.mark.parametrize(("limit", "count"), [({"type": "Local"}, 0), (REMOVED, 1)])
def test_http_route(limit, count):
    """An HTTPRoute has its limit as a GRPCRoute does."""
    manifests = changed("gateway-api", ("BackendTrafficPolicy/user-service", "spec.rateLimit", limit))
    manifests.objects = [each for each in manifests.objects if each["kind"] != "GRPCRoute"]
    parents = [{"name": "user-service", "sectionName": "grpc"}]
    spec = {"parentRefs": parents, "rules": [{"backendRefs": [{"name": "user-service", "port": 50051}]}]}
    metadata = {"name": "user-service", "namespace": "user-service-trial"}
    manifests.objects.append({"kind": "HTTPRoute", "metadata": metadata, "spec": spec})
    assert len(texts(limit_calls_from_outside, manifests)) == count


@pytest.mark.parametrize(
    ("name", "count"), [("local_ratelimit", 0), ("ratelimit", 0), ("compressor", 3), ("rate_limit_quota", 3)]
)
def test_envoy_filter_beside_the_gateway(name, count):
    """An EnvoyFilter needs no annotation where it is in the same overlay, if it has a filter that limits."""
    manifests = changed("istio", OF_ISTIO)
    kind = {"@type": f"type.googleapis.com/envoy.extensions.filters.http.{name}.v3.Any"}
    patches = [{"applyTo": "HTTP_FILTER", "patch": {"value": {"typed_config": kind}}}]
    manifests.objects.append({"kind": "EnvoyFilter", "metadata": {}, "spec": {"configPatches": patches}})
    assert len(texts(limit_calls_from_outside, manifests)) == count
