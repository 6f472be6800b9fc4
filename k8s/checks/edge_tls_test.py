import pytest

from k8s.checks.edge_tls import take_calls_over_tls
from k8s.checks.testing import REMOVED, changed, texts

LISTENER = "Gateway/user-service"
HEALTH = "PathPrefix(`/grpc.health.v1.Health/`)"


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("prod", ("IngressRoute/user-service", "spec.tls", REMOVED), "without spec.tls"),
        ("traefik", ("IngressRoute/user-service", "spec.tls", REMOVED), "without spec.tls"),
        ("nginx-ingress", ("Ingress/user-service", "spec.tls", REMOVED), "the host grpc.example.com"),
        (
            "nginx-ingress",
            ("Ingress/user-service", "spec.tls.0.hosts", ["other.example.com"]),
            "the host grpc",
        ),
        ("nginx-ingress", ("Ingress/user-service", "spec.rules.0.host", REMOVED), "the host of any name"),
        ("gateway-api", (LISTENER, "spec.listeners.0.protocol", "HTTP"), "the listener"),
    ],
)
def test_edge_in_plaintext(name, change, what):
    """Whoever listens on the way would have the tokens of all callers."""
    found = texts(take_calls_over_tls, changed(name, change))
    assert found
    assert all(what in text and "takes calls in plaintext" in text for text in found)


def test_route_of_no_method():
    """What leads to no method of the service may be in plaintext."""
    route = ("IngressRoute/user-service", "spec.routes.0.match", HEALTH)
    plaintext = ("IngressRoute/user-service", "spec.tls", REMOVED)
    assert texts(take_calls_over_tls, changed("prod", route, plaintext)) == []
