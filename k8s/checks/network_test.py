import pytest

from k8s.checks import network
from k8s.checks.rendered import OVERLAYS
from k8s.checks.testing import REMOVED, changed, overlay, texts, without

SERVER = "Deployment/user-service: spec.template.spec.containers[user-service]"
MIGRATION = "Job/user-service-migrate: spec.template.spec.containers[migrate]"


def test_database_that_is_closed():
    """Without its policy neither servers nor the migration reach the database."""
    manifests = without("prod", "NetworkPolicy/user-service-to-postgres")
    what = "no NetworkPolicy lets it out to port 5432 (DATABASE_URL); add one that does"
    assert texts(network.let_programs_out, manifests) == [f"{SERVER}: {what}", f"{MIGRATION}: {what}"]


def test_database_at_another_port():
    """The port is that of the URL."""
    env = [
        {"name": "CONFIG_FILE", "value": "/etc/user-service/config.yaml"},
        {"name": "DATABASE_URL", "value": "postgresql://u@host:6432/name"},
    ]
    change = ("Deployment/user-service", "spec.template.spec.containers.0.env", env)
    [text] = texts(network.let_programs_out, changed("istio", change))
    assert "port 6432 (DATABASE_URL)" in text


def test_collector_that_is_closed():
    """Without its policy traces are dropped."""
    manifests = without("prod", "NetworkPolicy/user-service-to-otel-collector")
    [text] = texts(network.let_programs_out, manifests)
    assert "port 4317 (OTEL_EXPORTER_OTLP_ENDPOINT)" in text


def test_dns_that_is_closed():
    """Without DNS a server finds nothing else either."""
    manifests = changed("prod", ("NetworkPolicy/user-service", "spec.egress", REMOVED))
    [text] = texts(network.let_programs_out, manifests)
    assert text.startswith(f"{SERVER}: no NetworkPolicy lets it out to port 53 (DNS)")


def test_scraper_that_is_kept_out():
    """Without its policy Prometheus finds all pods down."""
    manifests = without("prod", "NetworkPolicy/user-service-from-prometheus")
    [text] = texts(network.let_scrapers_in, manifests)
    assert text == (
        "PodMonitor/user-service: spec.podMetricsEndpoints[0].port: no NetworkPolicy opens port metrics of "
        "Deployment/user-service to it; add one with the namespace that it is in"
    )


@pytest.mark.parametrize(
    ("name", "policy", "manifest", "count"),
    [
        ("prod", "user-service-from-traefik", "IngressRoute/user-service", 1),
        ("nginx-ingress", "user-service-from-ingress-nginx", "Ingress/user-service", 1),
        ("gateway-api", "user-service-from-gateway", "GRPCRoute/user-service", 3),
        ("istio", "user-service-from-istio-ingress", "VirtualService/user-service-gateway", 3),
    ],
)
def test_proxy_that_is_kept_out(name, policy, manifest, count):
    """The policy for clients lets no proxy in: each edge needs one of its own."""
    found = texts(network.let_proxies_in, without(name, f"NetworkPolicy/{policy}"))
    assert len(found) == count
    assert all(text.startswith(f"{manifest}: spec.") for text in found)
    assert all("no NetworkPolicy opens port 50051 of Deployment/user-service to it" in text for text in found)


@pytest.mark.parametrize(
    ("port", "count"), [({"port": "grpc"}, 0), ({"port": 50051}, 0), ({}, 0), ({"port": "metrics"}, 1)]
)
def test_ports_of_a_rule(port, count):
    """A rule names a port, or has its number, or is for all."""
    change = ("NetworkPolicy/user-service-from-traefik", "spec.ingress.0.ports", [port])
    assert len(texts(network.let_proxies_in, changed("prod", change))) == count


@pytest.mark.parametrize(
    "peers",
    [
        REMOVED,
        [],
        [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        [{"namespaceSelector": {"matchLabels": {"a": "b"}}}],
    ],
)
def test_peers_that_may_be_a_proxy(peers):
    """Everybody, a range of addresses and a namespace may be the proxy."""
    change = ("NetworkPolicy/user-service-from-traefik", "spec.ingress.0.from", peers)
    assert texts(network.let_proxies_in, changed("prod", change)) == []


@pytest.mark.parametrize("rule", [network.let_programs_out, network.let_scrapers_in, network.let_proxies_in])
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_without_policies(rule, name):
    """Where no policy selects a pod, all is open."""
    manifests = overlay(name)
    manifests.objects = [each for each in manifests.objects if each["kind"] != "NetworkPolicy"]
    assert texts(rule, manifests) == []
