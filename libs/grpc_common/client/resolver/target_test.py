import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.resolver.target import (
    DnsTarget,
    KubernetesTarget,
    StaticTarget,
    endpoint_uri,
    parse_target,
)

LONG = ("user", "shop", 50051, "user.shop.svc.cluster.local")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # Those of kuberesolver's README and tests.
        ("kubernetes:///user:50051", ("user", None, 50051, "user")),
        ("kubernetes:///user:grpc", ("user", None, "grpc", "user")),
        ("kubernetes:///user.shop:50051", ("user", "shop", 50051, "user.shop")),
        ("kubernetes:///user.shop:grpc", ("user", "shop", "grpc", "user.shop")),
        ("kubernetes:///user.shop.svc.cluster.local:50051", LONG),
        ("kubernetes://shop/user:50051", ("user", "shop", 50051, "user.shop")),
        ("kubernetes://user:50051/", ("user", None, 50051, "user")),
        ("kubernetes://user.shop:50051/", ("user", "shop", 50051, "user.shop")),
        ("kubernetes://user.shop.svc.cluster.local:50051", LONG),
        ("kubernetes://user.shop.svc.cluster.local:50051/", LONG),
        # Without a port.
        ("kubernetes:///user", ("user", None, None, "user")),
        ("kubernetes:///user.shop", ("user", "shop", None, "user.shop")),
        ("kubernetes:///user.shop.svc.cluster.local", (*LONG[:2], None, LONG[3])),
        ("kubernetes://user.shop.svc.cluster.local", (*LONG[:2], None, LONG[3])),
        ("kubernetes://shop/user", ("user", "shop", None, "user.shop")),
        ("kubernetes://user.shop/", ("user", "shop", None, "user.shop")),
        # Other places of the suffix, and the same namespace twice.
        ("kubernetes:///a.b.svc:1", ("a", "b", 1, "a.b.svc")),
        ("kubernetes:///a.b.svc.example.com:65535", ("a", "b", 65535, "a.b.svc.example.com")),
        ("kubernetes://shop/user.shop.svc.cluster.local:50051", LONG),
    ],
)
def test_kubernetes_targets(target, expected):
    """All forms of kuberesolver are taken; the name of the certificate is what is written."""
    assert parse_target(target) == KubernetesTarget(*expected)


@pytest.mark.parametrize(
    "target",
    [
        "kubernetes:",
        "kubernetes:///",
        "kubernetes://",
        "kubernetes:///:50051",
        "kubernetes:///user-service.default:",
        "kubernetes:///user-service.default:0",
        "kubernetes:///user-service.default:65536",
        "kubernetes:///user-service.default.pod:1",
        "kubernetes:///User.default:1",
        "kubernetes:///user_service.default:1",
        "kubernetes:///user-service.default:50051/",
        "kubernetes:///user-service.default/50051",
        "kubernetes:///a/b:1",
        "kubernetes:///10.0.0.7:50051",
        "kubernetes:///[::1]:50051",
        "kubernetes:///user-service.default:50051\n",
        "kubernetes:user-service.default:50051",
        "kubernetes:/user-service.default:50051",
        "kubernetes://default/user-service:50051/",
        "kubernetes://default.svc/user-service:50051",
        "kubernetes://default:1/user-service:50051",
        "kubernetes://user@default/user-service:50051",
        "kubernetes:///user-service.default:50051?a=b",
    ],
)
def test_other_kubernetes_targets_are_refused(target):
    """A Kubernetes target of another form is an error of one line with an example."""
    with pytest.raises(ValueError, match=r"as in kubernetes:///user-service\.default:50051") as caught:
        parse_target(target)
    assert repr(target) in str(caught.value)
    assert str(caught.value).isprintable()


def test_two_namespaces_are_refused():
    """The service can only be in one of them."""
    with pytest.raises(ValueError, match="names two namespaces, shop and bank"):
        parse_target("kubernetes://shop/user.bank:50051")


@pytest.mark.parametrize(
    ("target", "addresses"),
    [
        ("10.0.0.7:50051", ["10.0.0.7:50051"]),
        ("[::1]:50051", ["[::1]:50051"]),
        ("[FD00:0::7]:50051", ["[fd00::7]:50051"]),
        ("[fe80::1%25eth0]:50051", ["[fe80::1%eth0]:50051"]),
        ("dns:10.0.0.7:50051", ["10.0.0.7:50051"]),
        ("dns:///10.0.0.7:50051", ["10.0.0.7:50051"]),
        ("dns:///[fd00::7]:50051", ["[fd00::7]:50051"]),
        ("dns://10.0.0.1/10.0.0.7:50051", ["10.0.0.7:50051"]),
        ("ipv4:10.0.0.7:50051,10.0.0.8:50052", ["10.0.0.7:50051", "10.0.0.8:50052"]),
        ("ipv6:[::1]:50051,[::2]:50051", ["[::1]:50051", "[::2]:50051"]),
        ("unix:relative.sock", ["unix:relative.sock"]),
        ("unix:/run/user.sock", ["unix:/run/user.sock"]),
        ("unix:///run/user.sock", ["unix:/run/user.sock"]),
        ("unix:////run/user.sock", ["unix:/run/user.sock"]),
        ("unix-abstract:user", ["unix-abstract:user"]),
    ],
)
def test_static_targets(target, addresses):
    """Addresses and sockets are endpoints already."""
    assert parse_target(target) == StaticTarget(tuple(addresses), target)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("user-service:50051", ("user-service", 50051, None)),
        ("localhost:1", ("localhost", 1, None)),
        ("_grpc.user_service.example.com.:1", ("_grpc.user_service.example.com.", 1, None)),
        ("3.example.com:1", ("3.example.com", 1, None)),
        ("dns:user-service:50051", ("user-service", 50051, None)),
        ("dns:/user-service:50051", ("user-service", 50051, None)),
        ("dns:///user-service-headless:50051", ("user-service-headless", 50051, None)),
        ("dns://10.0.0.10/user-service:50051", ("user-service", 50051, "10.0.0.10")),
        ("dns://127.0.0.1:5353/a.b.svc.cluster.local.:1", ("a.b.svc.cluster.local.", 1, "127.0.0.1:5353")),
        ("dns://[::1]:5353/user-service:1", ("user-service", 1, "[::1]:5353")),
    ],
)
def test_dns_targets(target, expected):
    """A name, its port, and the DNS server to ask if there is one."""
    assert parse_target(target) == DnsTarget(*expected, target)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "user-service",
        "user-service:",
        "user-service:grpc",
        "user-service:0",
        "user-service:65536",
        "user service:1",
        "user..service:1",
        ".user:1",
        "a" * 64 + ":1",
        "a." * 128 + ":1",
        "/user-service:1",
        "///user-service:1",
        "10.0.0.256:1",
        "10.0.0.07:1",
        "10.0.7:1",
        "[10.0.0.7]:1",
        "[::1:1",
        "[::g]:1",
        "fd00::7:1",
        "http://user-service:80",
        "dns:",
        "dns:///",
        "dns:///user-service",
        "dns://resolver:50051",
        "dns:///user-service:1/",
        "ipv4:10.0.0.7",
        "ipv4:10.0.0.7:1,",
        "ipv4:[::1]:1",
        "ipv4:localhost:1",
        "ipv6:10.0.0.7:1",
        "unix:",
        "xds:///user-service",
        "user-service:1\n",
        "user-service:\uff11",
        "\uff11.0.0.1:1",
        "unix:/a\0b",
        "unix-abstract:\0a",
        "unix:/a\nb",
    ],
)
def test_other_targets_are_refused(target):
    """A target that would fail later, or mean port 443, is an error that lists the right forms."""
    with pytest.raises(ValueError, match="is not of the form kubernetes:///SERVICE") as caught:
        parse_target(target)
    assert repr(target) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "resolver", ["resolver", "resolver:53", "10.0.0.1:0", "10.0.0.256", "::1", "[::1]:x"]
)
def test_other_dns_servers_are_refused(resolver):
    """A DNS server is known by its address, as in C-core."""
    with pytest.raises(ValueError, match=r"DNS server .* is not of the form IP or IP:PORT"):
        parse_target(f"dns://{resolver}/user-service:50051")


def test_socket_with_an_authority_is_refused():
    """At the first call gRPC would refuse it."""
    with pytest.raises(ValueError, match="is not of the form unix:PATH or unix:///ABSOLUTE/PATH"):
        parse_target("unix://run/user.sock")
    with pytest.raises(ValueError, match="has a comma in its path, at which gRPC would split it"):
        parse_target("unix:/run/a,b.sock")


@given(st.text() | st.from_regex(r"\A(kubernetes|dns|ipv4|ipv6|unix):[/a-z0-9.:,%\[\]-]*\Z"))
def test_any_text_is_a_target_or_an_error_of_one_line(target):
    """Nothing else than a ValueError comes out, and it can be logged."""
    try:
        parse_target(target)
    except ValueError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("10.0.0.7:50051", "ipv4:10.0.0.7:50051"),
        ("[fd00::7]:50051", "ipv6:[fd00::7]:50051"),
        ("[fe80::1%eth0]:50051", "ipv6:[fe80::1%25eth0]:50051"),
        ("unix:/run/user.sock", "unix:/run/user.sock"),
        ("unix-abstract:user", "unix-abstract:user"),
    ],
)
def test_target_of_an_endpoint(address, uri):
    """C-core's target for one endpoint means the same endpoint."""
    assert endpoint_uri(address) == uri
    assert parse_target(uri) == StaticTarget((address,), uri)
