import pytest

from k8s.checks.rate_limits import limit_calls_from_outside
from k8s.checks.testing import REMOVED, changed, texts

NGINX = "metadata.annotations[nginx.ingress.kubernetes.io/limit-rps]"
OF_GATEWAY = ("BackendTrafficPolicy/user-service", "spec.rateLimit", REMOVED)
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
        ("gateway-api", OF_GATEWAY, 3),
        ("gateway-api", REPLACES, 1),
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
