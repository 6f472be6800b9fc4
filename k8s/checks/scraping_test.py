import pytest

from k8s.checks import network, scraping
from k8s.checks.testing import changed, texts, without

DEPLOYMENT = "Deployment/user-service"
ANNOTATIONS = {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}
MONITOR = {
    "apiVersion": "monitoring.coreos.com/v1",
    "kind": "ServiceMonitor",
    "metadata": {"name": "user-service", "namespace": "user-service"},
    "spec": {
        "selector": {"matchLabels": {"app.kubernetes.io/name": "user-service"}},
        "endpoints": [{"port": "metrics"}],
    },
}


def annotated(where, *changes):
    """Return prod with the annotations of a scrape at pods or at a Service."""
    return changed("prod", (*where, dict(ANNOTATIONS)), *changes)


def monitored(*services):
    """Return prod with a ServiceMonitor too, and the port that it has scraped at these Services."""
    port = {"name": "metrics", "port": 9090, "targetPort": "metrics"}
    manifests = changed("prod", *((f"Service/{name}", "spec.ports", [port]) for name in services))
    manifests.objects.append(MONITOR)
    return manifests


def test_pod_monitor_alone():
    """Each overlay's own monitor is the only one."""
    assert texts(scraping.scrape_once, changed("prod")) == []


@pytest.mark.parametrize(
    "where",
    [
        (DEPLOYMENT, "spec.template.metadata.annotations"),
        ("Service/user-service", "metadata.annotations"),
    ],
)
def test_annotations_beside_a_monitor(where):
    """Whoever adds the guide's annotations to a PodMonitor has each call counted twice."""
    [text] = texts(scraping.scrape_once, annotated(where))
    _, field = where
    what = "has Deployment/user-service scraped, as PodMonitor/user-service does already"
    assert text.partition(": ")[2] == f"{field}[prometheus.io/scrape]: {what}; leave one of them out"


@pytest.mark.parametrize(("services", "count"), [((), 0), (("user-service",), 1)])
def test_service_monitor_beside_a_pod_monitor(services, count):
    """The guide's ServiceMonitor has nothing scraped as long as no Service has its port."""
    assert len(texts(scraping.scrape_once, monitored(*services))) == count


def test_service_monitor_of_two_services():
    """Through two Services each pod is scraped twice, with one monitor."""
    manifests = monitored("user-service", "user-service-headless")
    manifests.objects = [each for each in manifests.objects if each["kind"] != "PodMonitor"]
    [text] = texts(scraping.scrape_once, manifests)
    assert text.startswith("ServiceMonitor/user-service: spec.endpoints[0].port: has Deployment/user-service")


def test_another_port_of_the_same_pod():
    """A sidecar's metrics are not those of the server."""
    other = ("Deployment/user-service", "spec.template.metadata.annotations[prometheus.io/port]", "15020")
    manifests = annotated((DEPLOYMENT, "spec.template.metadata.annotations"), other)
    assert texts(scraping.scrape_once, manifests) == []
    [text] = texts(scraping.annotate_container_ports, manifests)
    assert "Deployment/user-service has no container port 15020; take one of [50052, 50051, 9090]" in text


def test_scraper_by_annotations_that_is_kept_out():
    """The way in is for them as for a monitor."""
    manifests = without("prod", "NetworkPolicy/user-service-from-prometheus")
    manifests.objects = [each for each in manifests.objects if each["kind"] != "PodMonitor"] + [MONITOR]
    assert texts(network.let_scrapers_in, manifests) == []
    manifests = annotated(
        (DEPLOYMENT, "spec.template.metadata.annotations"),
        ("NetworkPolicy/user-service-from-prometheus", "spec.ingress", []),
        ("PodMonitor/user-service", "spec.podMetricsEndpoints", []),
    )
    [text] = texts(network.let_scrapers_in, manifests)
    assert "no NetworkPolicy opens port 9090 of Deployment/user-service to it" in text


@pytest.mark.parametrize(("namespace", "count"), [("other", 1), ("user-service", 0), ("", 0)])
def test_rules_of_another_namespace(namespace, count):
    """Rules are compared with the namespace that they are in, if it is said; a deployment may say it."""
    manifests = changed("prod")
    for each in [*manifests.objects]:
        each["metadata"]["namespace"] = namespace
    manifests.objects = [each for each in manifests.objects if each["metadata"]["name"] != "user-service-slo"]
    found = texts(scraping.watch_their_own_namespace, manifests)
    assert len(found) == 2 * count
    assert all(f"tell of namespace user-service, and not of {namespace}" in text for text in found)
