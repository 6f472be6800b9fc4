import pytest

from k8s.checks.entrances import entrances
from k8s.checks.manifests import title
from k8s.checks.methods import METHODS
from k8s.checks.servers import servers
from k8s.checks.testing import changed, without

GET = "/user.UserService/GetUser"
SERVICE = {"name": "user-service", "port": "grpc", "scheme": "h2c"}
HERE = {"namespace": "user-service-trial"}


def ways(manifests):
    """Return what leads to the server from outside, and which methods it takes."""
    [server] = servers(manifests)
    found = entrances(manifests, server)
    return [(title(way.manifest), {path for path in METHODS if way.takes(path)}) for way in found]


def with_objects(*objects):
    """Return an overlay with other ways in than its own."""
    manifests = without("traefik", "IngressRoute/user-service")
    named = ({"metadata": {"name": "a"} | HERE} | each for each in objects)
    manifests.objects = [*manifests.objects, *named]
    return manifests


def route(match="Host(`a`)", services=(SERVICE,), **rule):
    """Return a route of Traefik's."""
    rules = [{"kind": "Rule", "match": match, "services": list(services)} | rule]
    return {"kind": "IngressRoute", "spec": {"routes": rules}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dev", []),
        ("istio", []),
        ("nginx-ingress", [("Ingress/user-service", {*METHODS})]),
        ("prod", [("IngressRoute/user-service", {*METHODS})]),
        ("gateway-api", [("GRPCRoute/user-service", {path}) for path in sorted(METHODS, reverse=True)]),
    ],
)
def test_overlays(name, expected):
    """Each edge leads in, rule by rule; a mesh alone does not."""
    by_method = sorted(ways(changed(name)), key=lambda way: max(way[1]), reverse=True)
    assert by_method == expected


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (f"PathPrefix(`{GET}`)", {GET}),
        ("Host(`a`) && !PathPrefix(`/user.UserService/`)", set()),
        ("Host(`a`)", {*METHODS}),
        (f"Path(`{GET}`) && HeaderRegexp(`a`, `b`)", {GET}),
    ],
)
def test_rules_of_traefik(match, expected):
    """A rule takes what it may take: other conditions than the path hold for some caller."""
    assert ways(with_objects(route(match))) == [("IngressRoute/a", expected)]


def test_path_that_is_rewritten():
    """Behind a middleware that changes paths, or that nobody knows, any path may be any method."""
    strip = {
        "kind": "Middleware",
        "metadata": {"name": "s"} | HERE,
        "spec": {"stripPrefix": {"prefixes": ["/"]}},
    }
    for name in ("s", "unknown"):
        found = ways(with_objects(strip, route("PathPrefix(`/api/`)", middlewares=[{"name": name}])))
        assert found == [("IngressRoute/a", {*METHODS})]
    retry = strip | {"spec": {"retry": {"attempts": 2}}}
    found = ways(with_objects(retry, route("PathPrefix(`/api/`)", middlewares=[{"name": "s"}])))
    assert found == [("IngressRoute/a", set())]


@pytest.mark.parametrize("to", [{}, {"namespace": "user-service-trial"}, {"namespace": "other"}])
def test_service_of_a_namespace(to):
    """A route leads to the Service of the namespace that it names, its own if it names none."""
    assert len(ways(with_objects(route(services=[SERVICE | to])))) == (to.get("namespace") != "other")


@pytest.mark.parametrize(
    "spec",
    [
        {"weighted": {"services": [{"name": "other"}, SERVICE]}},
        {"mirroring": {"name": "other", "mirrors": [SERVICE]}},
        {"mirroring": {"name": "user-service"}},
        {"highestRandomWeight": {"services": [SERVICE]}},
    ],
)
def test_service_of_traefik(spec):
    """A TraefikService leads where its Services do."""
    service = {"kind": "TraefikService", "metadata": {"name": "w"} | HERE, "spec": spec}
    found = ways(with_objects(service, route(services=[{"name": "w", "kind": "TraefikService"}])))
    assert found == [("IngressRoute/a", {*METHODS})]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("IngressRouteTCP", {"routes": [{"match": "HostSNI(`*`)", "services": [SERVICE]}]}),
        ("TLSRoute", {"rules": [{"backendRefs": [SERVICE]}]}),
        ("TCPRoute", {"rules": [{"backendRefs": [SERVICE]}]}),
        ("HTTPRoute", {"rules": [{"backendRefs": [SERVICE]}]}),
        ("Ingress", {"defaultBackend": {"service": SERVICE}}),
        (
            "VirtualService",
            {"gateways": ["a"], "http": [{"route": [{"destination": {"host": "user-service"}}]}]},
        ),
    ],
)
def test_other_ways_in(kind, spec):
    """Whatever leads connections or calls to the Service is a way in."""
    assert ways(with_objects({"kind": kind, "spec": spec})) == [(f"{kind}/a", {*METHODS})]


@pytest.mark.parametrize("protocol", ["tls", "tcp"])
def test_connections_through_a_mesh(protocol):
    """A gateway of a mesh that passes connections on leads in as well."""
    spec = {
        "gateways": ["a"],
        protocol: [{"route": [{"destination": {"host": "user-service.user-service-trial"}}]}],
    }
    found = ways(with_objects({"kind": "VirtualService", "spec": spec}))
    assert found == [("VirtualService/a", {*METHODS})]


@pytest.mark.parametrize(
    ("kinds", "count"), [(["Service"], 0), (["Gateway"], 1), (["Service", "Gateway"], 1)]
)
@pytest.mark.parametrize("route_kind", ["GRPCRoute", "HTTPRoute"])
def test_route_of_a_service(route_kind, kinds, count):
    """A route whose parent is a Service is that of a mesh."""
    parents = [{"kind": kind, "name": "a"} for kind in kinds]
    spec = {"parentRefs": parents, "rules": [{"backendRefs": [SERVICE]}]}
    assert len(ways(with_objects({"kind": route_kind, "spec": spec}))) == count


@pytest.mark.parametrize(("gateways", "count"), [(["mesh"], 0), (["outside"], 3), (["mesh", "a/b"], 3)])
def test_gateways_of_a_mesh(gateways, count):
    """A VirtualService of sidecars alone is no way in."""
    assert len(ways(changed("istio", ("VirtualService/user-service", "spec.gateways", gateways)))) == count


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (("Service/user-service", "spec.type", "LoadBalancer"), 1),
        (("Service/user-service", "spec.type", "NodePort"), 1),
        (("Service/user-service", "spec.type", "ClusterIP"), 0),
        (("Service/user-service", "spec.externalIPs", ["192.0.2.1"]), 1),
        (("Deployment/user-service", "spec.template.spec.hostNetwork", True), 1),
        (("Deployment/user-service", "spec.template.spec.containers.0.ports.0.hostPort", 50051), 1),
        (("Deployment/user-service", "spec.template.spec.containers.0.ports.1.hostPort", 9090), 0),
    ],
)
def test_published_ports(change, count):
    """A port that nodes or a load balancer publish is a way in, if it is one that takes calls."""
    assert len(ways(changed("dev", change))) == count


@pytest.mark.parametrize(("port", "count"), [("grpc", 1), (50051, 1), ("metrics", 0), (9090, 0)])
def test_published_service_of_another_port(port, count):
    """A Service that publishes metrics leads to no method."""
    ports = ("Service/user-service", "spec.ports", [{"name": "a", "port": 1, "targetPort": port}])
    assert len(ways(changed("dev", ports, ("Service/user-service", "spec.type", "NodePort")))) == count
