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
