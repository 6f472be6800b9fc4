import pytest

from k8s.checks import encryption
from k8s.checks.testing import REMOVED, changed, texts

ROUTE = "IngressRoute/user-service"
TRANSPORT = "ServersTransport/user-service"
PROTOCOL = "metadata.annotations[nginx.ingress.kubernetes.io/backend-protocol]"


@pytest.mark.parametrize(
    ("name", "scheme", "text"),
    [
        ("prod", "h2c", "is h2c, the server has TLS; set it to https"),
        ("prod", REMOVED, "is None, the server has TLS; set it to https"),
        ("traefik", "https", "is https, the server speaks plaintext HTTP/2; set it to h2c"),
        ("traefik", "http", "is http, the server speaks plaintext HTTP/2; set it to h2c"),
    ],
)
def test_traefik_that_speaks_otherwise(name, scheme, text):
    """Traefik's scheme is that of the server behind."""
    manifests = changed(name, (ROUTE, "spec.routes.0.services.0.scheme", scheme))
    assert texts(encryption.speak_as_servers_listen, manifests) == [
        f"{ROUTE}: spec.routes[0].services[user-service].scheme: {text}"
    ]


@pytest.mark.parametrize(("protocol", "found"), [("GRPCS", "GRPCS"), (REMOVED, None)])
def test_nginx_that_speaks_otherwise(protocol, found):
    """Unless it is told of gRPC, nginx speaks HTTP/1.1 to a server."""
    manifests = changed("nginx-ingress", ("Ingress/user-service", PROTOCOL, protocol))
    assert texts(encryption.speak_as_servers_listen, manifests) == [
        f"Ingress/user-service: {PROTOCOL}: is {found}, the server speaks plaintext HTTP/2; set it to GRPC"
    ]


@pytest.mark.parametrize(
    ("name", "protocol", "text"),
    [
        ("prod", "kubernetes.io/h2c", "the server has TLS; set it to https"),
        ("dev", "https", "the server speaks plaintext HTTP/2; set it to kubernetes.io/h2c"),
    ],
)
def test_service_of_another_protocol(name, protocol, text):
    """A Service's appProtocol is not that of a server that listens otherwise."""
    manifests = changed(name, ("Service/user-service", "spec.ports.0.appProtocol", protocol))
    assert texts(encryption.speak_as_servers_listen, manifests) == [
        f"Service/user-service: spec.ports[grpc].appProtocol: is {protocol}, {text}"
    ]


def with_policy(name, *changes):
    """Return an overlay with changes and a BackendTLSPolicy of its Service."""
    manifests = changed(name, *changes)
    spec = {"targetRefs": [{"kind": "Service", "name": "user-service"}]}
    manifests.objects.append({"kind": "BackendTLSPolicy", "metadata": {"name": "p"}, "spec": spec})
    return manifests


def test_gateway_that_speaks_otherwise():
    """A Gateway speaks TLS to the Services that a BackendTLSPolicy names, and plaintext to the others."""
    env = [
        {"name": "CONFIG_FILE", "value": "/etc/user-service/config.yaml"},
        {"name": "TLS_DIRECTORY", "value": "/etc/certs"},
    ]
    tls = ("Deployment/user-service", "spec.template.spec.containers.0.env", env)
    https = [
        (f"Service/{name}", "spec.ports.0.appProtocol", "https")
        for name in ("user-service", "user-service-headless")
    ]
    plaintext = texts(encryption.speak_as_servers_listen, changed("gateway-api", tls, *https))
    encrypted = texts(encryption.speak_as_servers_listen, with_policy("gateway-api"))
    rules = ("get-user", "list-users", "other-methods")
    where = [f"GRPCRoute/user-service: spec.rules[{rule}].backendRefs[user-service]" for rule in rules]
    wrong = "the server has TLS; add one with the server's name and authority"
    assert plaintext == [f"{each}: has no BackendTLSPolicy, {wrong}" for each in where]
    wrong = "the server speaks plaintext HTTP/2; leave it out"
    assert encrypted == [f"{each}: has a BackendTLSPolicy, {wrong}" for each in where]
    assert texts(encryption.speak_as_servers_listen, with_policy("gateway-api", tls, *https)) == []


def test_traefik_that_checks_an_address():
    """Without serverName the pod's address is looked for in the certificate."""
    [text] = texts(encryption.expect_a_name, changed("prod", (TRANSPORT, "spec.serverName", REMOVED)))
    assert text.startswith(f"{TRANSPORT}: spec.serverName: is missing, so an address is checked; ")


def test_traefik_that_checks_nothing():
    """A transport that accepts any certificate is none that is mutual."""
    [text] = texts(encryption.expect_a_name, changed("prod", (TRANSPORT, "spec.insecureSkipVerify", True)))
    assert text.startswith(f"{TRANSPORT}: spec.insecureSkipVerify: accepts whoever answers; ")


def test_traefik_without_a_transport():
    """TLS without a ServersTransport is checked against an address, and the public authorities."""
    path = "spec.routes.0.services.0.serversTransport"
    [text] = texts(encryption.expect_a_name, changed("prod", (ROUTE, path, REMOVED)))
    assert text == (
        f"{ROUTE}: spec.routes[0].services[user-service]: "
        "has no ServersTransport, so an address is checked; name one with serverName and rootCAs"
    )
