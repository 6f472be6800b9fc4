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


def in_mesh_alone(*changes):
    """Return the overlay of a mesh without its gateway's way in, and with changes."""
    manifests = changed("istio", *changes)
    outside = "VirtualService/user-service-gateway"
    manifests.objects = [each for each in manifests.objects if title(each) != outside]
    return manifests


def route(match="Host(`a`)", services=(SERVICE,), **rule):
    """Return a route of Traefik's."""
    rules = [{"kind": "Rule", "match": match, "services": list(services)} | rule]
    return {"kind": "IngressRoute", "spec": {"routes": rules}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dev", []),
        ("istio", 3 * [("VirtualService/user-service-gateway", {*METHODS})]),
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
    manifests = in_mesh_alone(("VirtualService/user-service", "spec.gateways", gateways))
    assert len(ways(manifests)) == count


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


@pytest.mark.parametrize(
    "alias", ["user-service.user-service-trial", "user-service.user-service-trial.svc.cluster.local"]
)
def test_alias_of_the_service(alias):
    """A Service elsewhere that is but another name of ours leads in; one of another host does not."""
    elsewhere = {"name": "alias", "namespace": "elsewhere"}
    service = {"kind": "Service", "metadata": elsewhere, "spec": {"type": "ExternalName"}}
    for name, count in ((alias, 1), ("user-service.example.com", 0)):
        service["spec"]["externalName"] = name
        found = route(services=[{"name": "alias", "port": 1}]) | {"metadata": elsewhere}
        assert len(ways(with_objects(service, found))) == count


@pytest.mark.parametrize("kind", ["GRPCRoute", "HTTPRoute"])
@pytest.mark.parametrize("inner", [False, True])
def test_copies_of_calls(kind, inner):
    """What gets copies of calls takes calls: they create users, though nobody sees the answers."""
    copies = {"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": SERVICE}}]}
    rule = {"backendRefs": [{"name": "other"} | copies]} if inner else copies
    assert ways(with_objects({"kind": kind, "spec": {"rules": [rule]}})) == [(f"{kind}/a", {*METHODS})]


@pytest.mark.parametrize(
    "copies",
    [{"mirror": {"host": "user-service"}}, {"mirrors": [{"destination": {"host": "user-service"}}]}],
)
def test_copies_in_a_mesh(copies):
    """So it is with a VirtualService."""
    spec = {"gateways": ["a"], "http": [{"route": [{"destination": {"host": "other"}}]} | copies]}
    found = ways(with_objects({"kind": "VirtualService", "spec": spec}))
    assert found == [("VirtualService/a", {*METHODS})]


@pytest.mark.parametrize(("gateways", "count"), [(["outside"], 3), (["mesh"], 0)])
def test_virtual_service_that_is_left_to(gateways, count):
    """A VirtualService to which one of a gateway leaves its calls leads in as well."""
    manifests = in_mesh_alone()
    spec = {"gateways": gateways, "http": [{"delegate": {"name": "user-service"}}]}
    outer = {"kind": "VirtualService", "metadata": {"name": "outer"} | HERE, "spec": spec}
    manifests.objects.append(outer)
    assert len(ways(manifests)) == count


def test_paths_in_any_case():
    """A rule with ignoreUriCase takes the path of the method however it is written."""
    match = {"uri": {"exact": GET.upper()}, "ignoreUriCase": True}
    http = [{"match": [match], "route": [{"destination": {"host": "user-service"}}]}]
    spec = {"gateways": ["a"], "http": http}
    assert ways(with_objects({"kind": "VirtualService", "spec": spec})) == [("VirtualService/a", {GET})]


@pytest.mark.parametrize(
    ("annotations", "path", "expected"),
    [
        ({"use-regex": "true"}, "/user[.].*/GetUser", {GET}),
        ({"use-regex": "true"}, "/USER.*", {*METHODS}),
        ({"use-regex": "true"}, "/other/(", {*METHODS}),
        ({}, "/user[.].*", set()),
        ({"configuration-snippet": "rewrite ^/a(.*)$ $1 break;"}, "/a/", {*METHODS}),
    ],
)
def test_paths_of_nginx(annotations, path, expected):
    """Patterns take what they match; what changes paths, or what nobody can read, takes everything."""
    given = {f"nginx.ingress.kubernetes.io/{name}": value for name, value in annotations.items()}
    manifests = changed(
        "nginx-ingress",
        ("Ingress/user-service", "metadata.annotations", given),
        ("Ingress/user-service", "spec.rules.0.http.paths.0.path", path),
    )
    assert ways(manifests) == [("Ingress/user-service", expected)]


@pytest.mark.parametrize(
    "spec", [{"plugin": {"a": {}}}, {"chain": {"middlewares": [{"name": "chain"}, {"name": "strip"}]}}]
)
def test_middlewares_that_may_rewrite(spec):
    """A chain does what is in it, and a plugin anything."""
    strip = {"kind": "Middleware", "metadata": {"name": "strip"} | HERE, "spec": {"stripPrefix": {}}}
    middleware = {"kind": "Middleware", "metadata": {"name": "chain"} | HERE, "spec": spec}
    found = route("PathPrefix(`/a/`)", middlewares=[{"name": "chain"}])
    assert ways(with_objects(found, strip, middleware)) == [("IngressRoute/a", {*METHODS})]


def test_pattern_in_a_path():
    """Rules in the language of Traefik 2 may have patterns in their paths."""
    found = route("Path(`/{service}/{method}`)", syntax="v2")
    assert ways(with_objects(found)) == [("IngressRoute/a", {*METHODS})]


def test_services_in_a_circle():
    """TraefikServices that name each other lead nowhere."""
    spec = {"weighted": {"services": [{"name": "a", "kind": "TraefikService"}]}}
    circle = {"kind": "TraefikService", "spec": spec}
    assert ways(with_objects(circle, route(services=[{"name": "a", "kind": "TraefikService"}]))) == []


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"path": {"type": "Exact", "value": GET}}, {GET}),
        ({"path": {"type": "PathPrefix", "value": "/user.UserService"}}, {*METHODS}),
        ({"path": {"type": "PathPrefix", "value": "/grpc.health.v1.Health"}}, set()),
        ({"headers": [{"name": "a", "value": "b"}]}, {*METHODS}),
    ],
)
def test_paths_of_an_http_route(match, expected):
    """A rule takes the paths that it names."""
    spec = {"rules": [{"matches": [match], "backendRefs": [SERVICE]}]}
    assert ways(with_objects({"kind": "HTTPRoute", "spec": spec})) == [("HTTPRoute/a", expected)]
