import pytest

from k8s.checks import backends
from k8s.checks.manifests import External
from k8s.checks.testing import changed, texts, without

ROUTE = "spec.http.0.route.0.destination"


@pytest.mark.parametrize(
    ("name", "manifest", "path", "field"),
    [
        ("prod", "IngressRoute/user-service", "spec.routes.0.services.0.name", "spec.routes[0].services[x]"),
        (
            "nginx-ingress",
            "Ingress/user-service",
            "spec.rules.0.http.paths.0.backend.service.name",
            "spec.rules[0].http.paths[0].backend.service",
        ),
        (
            "gateway-api",
            "GRPCRoute/user-service",
            "spec.rules.0.backendRefs.0.name",
            "spec.rules[get-user].backendRefs[x]",
        ),
        (
            "istio",
            "VirtualService/user-service",
            f"{ROUTE}.host",
            "spec.http[get-user].route[0].destination",
        ),
        ("istio", "DestinationRule/user-service", "spec.host", "spec.host"),
    ],
)
def test_backend_that_is_not_there(name, manifest, path, field):
    """Each kind of route is told which Service it misses."""
    namespace = "user-service" if name == "prod" else "user-service-trial"
    assert texts(backends.lead_to_services, changed(name, (manifest, path, "x"))) == [
        f"{manifest}: {field}: there is no Service x in namespace {namespace!r}; name one that is there"
    ]


@pytest.mark.parametrize(
    ("name", "manifest", "path", "port"),
    [
        ("prod", "IngressRoute/user-service", "spec.routes.0.services.0.port", "metrics"),
        (
            "nginx-ingress",
            "Ingress/user-service",
            "spec.rules.0.http.paths.0.backend.service.port.name",
            "http",
        ),
        ("gateway-api", "GRPCRoute/user-service", "spec.rules.0.backendRefs.0.port", 9090),
        ("istio", "VirtualService/user-service", f"{ROUTE}.port.number", 9090),
    ],
)
def test_port_that_the_service_has_not(name, manifest, path, port):
    """Each kind of route is told which ports there are."""
    [text] = texts(backends.lead_to_services, changed(name, (manifest, path, port)))
    assert text.endswith(f": Service user-service has no port {port}; take one of grpc, 50051")


def test_long_names_of_a_mesh():
    """A host may be written with its namespace; another namespace is another Service."""
    for host in ("user-service.user-service-trial", "user-service.user-service-trial.svc.cluster.local"):
        change = ("VirtualService/user-service", f"{ROUTE}.host", host)
        assert texts(backends.lead_to_services, changed("istio", change)) == []
    change = ("VirtualService/user-service", f"{ROUTE}.host", "user-service.other")
    [text] = texts(backends.lead_to_services, changed("istio", change))
    assert "there is no Service user-service in namespace 'other'" in text


def test_service_that_was_removed():
    """Everything that led to it is told."""
    assert len(texts(backends.lead_to_services, without("prod", "Service/user-service"))) == 1


def test_port_left_out():
    """A destination without a port takes the only one, and there may be one only."""
    change = ("VirtualService/user-service", f"{ROUTE}.port", {})
    assert texts(backends.lead_to_services, changed("istio", change)) == []
    second = ("Service/user-service", "spec.ports", [{"name": "a", "port": 1}, {"name": "b", "port": 2}])
    found = texts(backends.lead_to_services, changed("istio", change, second))
    assert "has no port None; take one of a, 1, b, 2" in found[0]


def test_subset_that_is_not_there():
    """A subset of a VirtualService is defined in a DestinationRule."""
    change = ("VirtualService/user-service", f"{ROUTE}.subset", "v2")
    [text] = texts(backends.take_subsets_that_exist, changed("istio", change))
    assert text == (
        "VirtualService/user-service: spec.http[get-user].route[0].destination.subset: "
        "no DestinationRule has a subset v2; define it there"
    )
    subset = {"name": "v2", "labels": {"version": "v2"}}
    rule = ("DestinationRule/user-service", "spec.subsets", [subset])
    [text] = texts(backends.take_subsets_that_exist, changed("istio", change, rule))
    assert text.startswith(
        "DestinationRule/user-service: spec.subsets[v2].labels: {'version': 'v2'} matches no pod"
    )


def test_subset_with_pods():
    """A subset of pods that are there, used or not, is fine."""
    subset = {"name": "v2", "labels": {"app.kubernetes.io/name": "user-service"}}
    changes = [
        ("DestinationRule/user-service", "spec.subsets", [subset]),
        ("VirtualService/user-service", f"{ROUTE}.subset", "v2"),
    ]
    assert texts(backends.take_subsets_that_exist, changed("istio", *changes)) == []


def test_services_of_others():
    """A Service that is declared external, and what is no Service, is left alone."""
    change = ("IngressRoute/user-service", "spec.routes.0.services.0.name", "x")
    manifests = changed("prod", change)
    manifests.external.append(External("Service", "x", "another team's"))
    assert texts(backends.lead_to_services, manifests) == []
    kind = ("IngressRoute/user-service", "spec.routes.0.services.0.kind", "TraefikService")
    assert texts(backends.lead_to_services, changed("prod", change, kind)) == []


def test_ingress_by_number():
    """A port may be given by its number."""
    path = "spec.rules.0.http.paths.0.backend.service.port"
    change = ("Ingress/user-service", path, {"number": 50051})
    assert texts(backends.lead_to_services, changed("nginx-ingress", change)) == []
    change = ("Ingress/user-service", path, {"number": 80})
    assert len(texts(backends.lead_to_services, changed("nginx-ingress", change))) == 1
