import pytest

from k8s.checks.edge_tls import take_calls_over_tls
from k8s.checks.testing import REMOVED, changed, texts

LISTENER = "Gateway/user-service"
HTTP = {"port": {"number": 80, "protocol": "HTTP2"}}
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
        ("istio", (LISTENER, "spec.servers.0.tls", REMOVED), "port 443 of the Gateway"),
        ("istio", (LISTENER, "spec.servers.0", HTTP | {"hosts": ["*"]}), "port 80 of the Gateway"),
        ("istio", (LISTENER, "spec.servers.0", HTTP | {"hosts": ["*/*.example.com"]}), "port 80"),
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


@pytest.mark.parametrize(
    "server", [HTTP | {"hosts": ["*"], "tls": {"httpsRedirect": True}}, HTTP | {"hosts": ["./a.example.org"]}]
)
def test_port_that_leads_nowhere(server):
    """A port of Istio's Gateway that only redirects, or is for another host, takes no calls."""
    manifests = changed("istio")
    [gateway] = manifests.of_kind("Gateway")
    gateway["spec"]["servers"].append(server)
    assert texts(take_calls_over_tls, manifests) == []
