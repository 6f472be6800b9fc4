import pytest

from k8s.checks import network
from k8s.checks.manifests import Manifests, get
from k8s.checks.rendered import OVERLAYS
from k8s.checks.testing import REMOVED, changed, overlay, texts, without

APPLICATIONS = [name for name in OVERLAYS if overlay(name).of_kind("Deployment")]
"""The overlays that have a server, without what is applied before them."""

SERVER = "Deployment/user-service: spec.template.spec.containers[user-service]"
SMOKE = "Job/user-service-smoke: spec.template.spec.containers[smoke]"
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
    assert "port 6432 of host (DATABASE_URL)" in text


def test_collector_that_is_closed():
    """Without its policy traces are dropped."""
    manifests = without("prod", "NetworkPolicy/user-service-to-otel-collector")
    [text] = texts(network.let_programs_out, manifests)
    assert "port 4317 of otel-collector.observability (OTEL_EXPORTER_OTLP_ENDPOINT)" in text


def test_dns_that_is_closed():
    """Without DNS a server finds nothing else either."""
    what = "no NetworkPolicy lets it out to port 53 (DNS); add one that does"
    manifests = without("prod", "NetworkPolicy/user-service-to-dns")
    assert texts(network.let_programs_out, manifests) == [
        f"{program}: {what}" for program in (SERVER, MIGRATION, SMOKE)
    ]


def test_smoke_job_that_is_kept_in():
    """Without the policy of clients a smoke Job fails, and each version with it."""
    [text] = texts(network.let_programs_out, without("prod", "NetworkPolicy/user-service-client"))
    assert text.startswith(
        f"{SMOKE}: no NetworkPolicy lets it out to port 50051 of user-service (SMOKE_TARGET)"
    )


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


TRIAL = ("NetworkPolicy/user-service-to-postgres", "spec.egress.0.to")


@pytest.mark.parametrize(
    "peer",
    [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "user-service"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "databases"}}},
        {"ipBlock": {"cidr": "192.0.2.0/24"}},
    ],
)
def test_way_that_leads_past_the_database(peer):
    """A port alone is no way: the database's own pods are not there."""
    [text, _] = texts(network.let_programs_out, changed("istio", (*TRIAL, [peer])))
    assert text.startswith(f"{SERVER}: no NetworkPolicy lets it out to port 5432 of user-service-postgres")


@pytest.mark.parametrize(
    ("peer", "count"),
    [
        ({"ipBlock": {"cidr": "10.0.0.0/8"}}, 0),
        ({"namespaceSelector": {}}, 0),
        ({"namespaceSelector": {"matchLabels": {"team": "observability"}}}, 0),
        ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}, 1),
        ({"podSelector": {}}, 1),
    ],
)
def test_way_to_another_namespace(peer, count):
    """What is in no overlay is where its name says, if the policy leads there at all."""
    change = ("NetworkPolicy/user-service-to-otel-collector", "spec.egress.0.to", [peer])
    assert len(texts(network.let_programs_out, changed("prod", change))) == count


@pytest.mark.parametrize(
    ("hosts", "count"),
    [("one.example.com:5432,two.example.com", 0), ("one.example.com,two.example.com:6432", 2)],
)
def test_database_of_several_hosts(hosts, count):
    """Each host of a URL has its port, and each is to be reached."""
    manifests = changed("prod")
    for program in network.programs(manifests):
        for url in [each for each in program.container["env"] if each["name"] == "DATABASE_URL"]:
            url |= {"value": f"postgresql://user@{hosts}/users", "valueFrom": {}}
    assert len(texts(network.let_programs_out, manifests)) == count


@pytest.mark.parametrize("name", APPLICATIONS)
def test_namespace_that_is_open(name):
    """Without a policy for all pods, whatever else runs there is open; each direction is closed by itself."""
    manifests = without(name, "NetworkPolicy/user-service-default-deny")
    [text] = texts(network.deny_by_default, manifests)
    assert "spec.policyTypes: Ingress is open for every pod that no policy selects" in text
    manifests.objects = [
        each for each in manifests.objects if each["metadata"]["name"] != "user-service-to-dns"
    ]
    assert len(texts(network.deny_by_default, manifests)) == 2


@pytest.mark.parametrize("cidr", [None, "0.0.0.0/0", "::/0"])
@pytest.mark.parametrize("policy", ["user-service-to-postgres", "user-service-to-dns"])
def test_way_out_to_everywhere(policy, cidr):
    """A way without a place leads to every address of the world."""
    peers = [{"ipBlock": {"cidr": cidr}}] if cidr else []
    change = (f"NetworkPolicy/{policy}", "spec.egress.0.to", peers)
    [text] = texts(network.lead_somewhere, changed("prod", change))
    assert text == (
        f"NetworkPolicy/{policy}: spec.egress[0]: leads everywhere; "
        "name a namespace, pods, or the addresses in `to`"
    )


@pytest.mark.parametrize("name", APPLICATIONS)
def test_dns_is_that_of_the_cluster(name):
    """A name is asked of kube-dns alone: whoever takes over a pod can't tell the world by DNS of his own."""
    policy = overlay(name).named("NetworkPolicy", "user-service-to-dns", namespace_of(name))
    [peer] = policy["spec"]["egress"][0]["to"]
    assert get(peer, "podSelector.matchLabels") == {"k8s-app": "kube-dns"}
    assert get(peer, "namespaceSelector.matchLabels") == {"kubernetes.io/metadata.name": "kube-system"}


@pytest.mark.parametrize("name", ["nginx-ingress", "traefik", "gateway-api", "prod", "staging"])
def test_authority_reaches_the_solver(name):
    """cert-manager's pods that prove the host answer, although the namespace is closed."""
    policy = overlay(name).named("NetworkPolicy", "user-service-acme-solver", namespace_of(name))
    assert get(policy, "spec.podSelector.matchLabels") == {"acme.cert-manager.io/http01-solver": "true"}
    assert policy["spec"]["ingress"] == [{"ports": [{"port": 8089}]}]


@pytest.mark.parametrize(("first", "last", "count"), [(5000, 5432, 0), (5432, 5433, 0), (5433, 6000, 2)])
def test_database_in_a_range_of_ports(first, last, count):
    """A way may be open for several ports."""
    ports = [{"port": first, "endPort": last}]
    manifests = changed("prod", ("NetworkPolicy/user-service-to-postgres", "spec.egress.0.ports", ports))
    assert len(texts(network.let_programs_out, manifests)) == count


SIDECAR = "Deployment/user-service: spec.template.metadata.labels: no NetworkPolicy lets its sidecar out"


def test_sidecar_that_is_kept_in():
    """Without istiod a sidecar has no certificate, and its pod is never ready."""
    [text] = texts(network.let_sidecars_out, without("istio", "NetworkPolicy/user-service-to-istiod"))
    assert text == f"{SIDECAR} to port 15012 (istiod); add one that does"
    assert texts(network.let_sidecars_out, without("prod", "NetworkPolicy/user-service-to-postgres")) == []


def test_sidecar_of_a_caller():
    """A pod of the namespace that the README calls a caller has a sidecar that works, and others none."""
    found = [
        texts(network.let_sidecars_out, Manifests([*overlay("istio").objects, caller(value)]))
        for value in ("true", "false")
    ]
    assert [len(each) for each in found] == [0, 1]


def caller(value):
    """Return a pod with a sidecar, as the component istio describes callers."""
    labels = {"sidecar.istio.io/inject": "true", "user-service-client": value}
    metadata = {"name": "caller", "namespace": namespace_of("istio"), "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": []}}


@pytest.mark.parametrize("merge", [REMOVED, "true"])
def test_scraper_that_istio_leads_to_its_sidecar(merge):
    """Istio rewrites annotations to a port of its own, which is closed to scrapers."""
    pod = "spec.template.metadata.annotations"
    wanted = {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}
    changes = [("Deployment/user-service", f"{pod}[{key}]", value) for key, value in wanted.items()]
    assert texts(network.let_scrapers_in, changed("istio", *changes)) == []
    changes.append(("Deployment/user-service", f"{pod}[prometheus.istio.io/merge-metrics]", merge))
    [text] = texts(network.let_scrapers_in, changed("istio", *changes))
    assert "no NetworkPolicy opens port 15020 of Deployment/user-service" in text


def namespace_of(name):
    """Return the namespace of an overlay."""
    [namespace] = overlay(name).of_kind("Namespace")
    return namespace["metadata"]["name"]
