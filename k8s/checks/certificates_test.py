import pytest

from k8s.checks import certificates
from k8s.checks.testing import REMOVED, changed, overlay, texts, without

SERVER = "Certificate/user-service"
EDGE = "Certificate/user-service-edge"
NAMES = overlay("prod").named("Certificate", "user-service", "user-service")["spec"]["dnsNames"]


def missing(name, *changes):
    """Return which names are missing, and in what; both as the errors say."""
    found = texts(certificates.have_the_names_that_are_dialled, changed(name, *changes))
    assert all(text.endswith(", is missing; add it") for text in found)
    return [text.removesuffix(", is missing; add it") for text in found]


@pytest.mark.parametrize("service", ["user-service", "user-service-headless"])
@pytest.mark.parametrize(
    "suffix", ["", ".user-service", ".user-service.svc", ".user-service.svc.cluster.local"]
)
def test_every_name_of_both_services(service, suffix):
    """A client may dial either Service, by any of its names, from any namespace."""
    name = service + suffix
    found = missing("prod", (SERVER, "spec.dnsNames", [each for each in NAMES if each != name]))
    assert f"{SERVER}: spec.dnsNames: {name}, which clients of Service/{service} expect" in found


def test_names_of_other_services():
    """What leads to other pods needs no name in this certificate."""
    other = {"app.kubernetes.io/name": "user-service-migrate"}
    change = ("Service/user-service-headless", "spec.selector", other)
    names = [name for name in NAMES if "headless" not in name]
    assert missing("prod", change, (SERVER, "spec.dnsNames", names)) == []


def test_certificate_of_another_namespace():
    """Names of the wrong namespace fail for every client outside it."""
    names = [name.replace(".user-service", ".default") for name in NAMES]
    assert len(missing("prod", (SERVER, "spec.dnsNames", names))) == 6


def test_wildcards():
    """A star is the first label, and one alone."""
    names = ["user-service", "user-service-headless", "*.user-service", "*.user-service.svc"]
    assert missing("prod", (SERVER, "spec.dnsNames", [*names, "*.user-service.svc.cluster.local"])) == []
    found = missing("prod", (SERVER, "spec.dnsNames", [*names, "*.svc.cluster.local"]))
    assert len(found) == 2
    assert all("svc.cluster.local, which" in text for text in found)


def test_name_that_traefik_expects():
    """The serverName of a ServersTransport is in the certificate of the pods behind its route."""
    assert missing("prod", ("ServersTransport/user-service", "spec.serverName", "users")) == [
        f"{SERVER}: spec.dnsNames: users, which clients of ServersTransport/user-service expect"
    ]


def test_name_that_nginx_expects():
    """So is proxy-ssl-name of an Ingress."""
    ingress = {
        "kind": "Ingress",
        "metadata": {
            "name": "i",
            "namespace": "user-service",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-ssl-name": "users"},
        },
        "spec": {"defaultBackend": {"service": {"name": "user-service", "port": {"name": "grpc"}}}},
    }
    manifests = overlay("prod")
    manifests.objects.append(ingress)
    [text] = texts(certificates.have_the_names_that_are_dialled, manifests)
    assert text.startswith(f"{SERVER}: spec.dnsNames: users, which clients of Ingress/i expect")


def test_names_that_meshes_and_gateways_expect():
    """So are the sni of a DestinationRule and the hostname of a BackendTLSPolicy."""
    manifests = overlay("prod")
    place = {"name": "x", "namespace": "user-service"}
    rule = {"host": "user-service", "trafficPolicy": {"tls": {"sni": "a"}}}
    policy = {"targetRefs": [{"kind": "Service", "name": "user-service"}], "validation": {"hostname": "b"}}
    manifests.objects += [
        {"kind": "DestinationRule", "metadata": place, "spec": rule},
        {"kind": "BackendTLSPolicy", "metadata": place, "spec": policy},
        {"kind": "BackendTLSPolicy", "metadata": place, "spec": {"targetRefs": [{"name": "other"}]}},
    ]
    found = texts(certificates.have_the_names_that_are_dialled, manifests)
    assert [text.split(": ")[2] for text in found] == [
        "a, which clients of DestinationRule/x expect, is missing; add it",
        "b, which clients of BackendTLSPolicy/x expect, is missing; add it",
    ]


@pytest.mark.parametrize(
    ("name", "manifest", "path", "value"),
    [
        (
            "prod",
            "IngressRoute/user-service",
            "spec.routes.0.match",
            "Host(`users.example.com`) && PathPrefix(`/user.UserService/`)",
        ),
        ("nginx-ingress", "Ingress/user-service", "spec.tls.0.hosts", ["users.example.com"]),
        ("gateway-api", "Gateway/user-service", "spec.listeners.0.hostname", "users.example.com"),
        ("gateway-api", "GRPCRoute/user-service", "spec.hostnames", ["users.example.com"]),
    ],
)
def test_host_of_an_edge(name, manifest, path, value):
    """The public certificate has each host of the edge that presents it."""
    assert missing(name, (manifest, path, value)) == [
        f"{EDGE}: spec.dnsNames: users.example.com, which clients of {manifest} expect"
    ]


def test_ingress_without_tls_hosts():
    """Without hosts of their own, the certificate is for those of the rules."""
    change = ("Ingress/user-service", "spec.rules.0.host", "users.example.com")
    hosts = ("Ingress/user-service", "spec.tls.0.hosts", REMOVED)
    assert len(missing("nginx-ingress", change, hosts)) == 1


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ({"algorithm": "ECDSA", "size": 256}, True),
        ({"algorithm": "ECDSA", "size": 384}, True),
        ({"algorithm": "ECDSA"}, True),
        ({"algorithm": "RSA", "size": 4096}, True),
        ({}, True),
        ({"algorithm": "ECDSA", "size": 521}, False),
        ({"algorithm": "Ed25519"}, False),
    ],
)
def test_kinds_of_keys(key, right):
    """Keys are RSA, P-256 or P-384, which are all that gRPC takes."""
    found = texts(
        certificates.are_of_a_kind_that_grpc_takes, changed("prod", (SERVER, "spec.privateKey", key))
    )
    assert (found == []) is right
    if not right:
        assert found[0].startswith(f"{SERVER}: spec.privateKey: gRPC can't use {key['algorithm']}")


@pytest.mark.parametrize("value", ["Never", REMOVED])
@pytest.mark.parametrize("certificate", [SERVER, EDGE, "Certificate/user-service-client"])
def test_key_that_is_kept(certificate, value):
    """Each certificate but the authority's gets a new key when it is renewed."""
    path = "spec.privateKey.rotationPolicy"
    [text] = texts(certificates.replace_their_keys, changed("prod", (certificate, path, value)))
    assert text.startswith(f"{certificate}: {path}: is N")


def test_usages():
    """A certificate is for what it is used for, by the server and by Traefik as a client."""
    changes = [(SERVER, "spec.usages", ["client auth"])]
    changes += [("Certificate/user-service-edge-client", "spec.usages", ["server auth"])]
    client, server = texts(certificates.may_be_used_as_they_are, changed("prod", *changes))
    assert (
        server
        == f"{SERVER}: spec.usages: has no server auth, for which Secret user-service-tls is used; add it"
    )
    assert client == (
        "Certificate/user-service-edge-client: spec.usages: has no client auth, "
        "for which Secret user-service-edge-client-tls is used; add it"
    )


def test_client_certificates_of_public_authorities():
    """A public authority signs none."""
    manifests = changed("prod", (EDGE, "spec.usages", ["server auth", "client auth"]))
    assert texts(certificates.may_be_used_as_they_are, manifests) == [
        f"{EDGE}: spec.usages: public authorities sign no client certificates; leave client auth out"
    ]


def test_certificate_of_somebody_else():
    """Of a Secret that no Certificate here makes nothing is known."""
    manifests = without("prod", EDGE)
    assert texts(certificates.have_the_names_that_are_dialled, manifests) == []
    assert texts(certificates.may_be_used_as_they_are, manifests) == []


def test_hosts_of_other_listeners():
    """A route that names no listener is on all of them, one that names another is not on this one."""
    hosts = ("GRPCRoute/user-service", "spec.hostnames", ["users.example.com"])
    everywhere = ("GRPCRoute/user-service", "spec.parentRefs", [{"name": "user-service"}])
    assert len(missing("gateway-api", hosts, everywhere)) == 1
    elsewhere = ("GRPCRoute/user-service", "spec.parentRefs.0.sectionName", "other")
    assert missing("gateway-api", hosts, elsewhere) == []


def test_wildcard_host():
    """A host with a star is in the certificate as it is."""
    hosts = ("Ingress/user-service", "spec.tls.0.hosts", ["*.example.com"])
    assert len(missing("nginx-ingress", hosts)) == 1
    assert missing("nginx-ingress", hosts, (EDGE, "spec.dnsNames", ["*.example.com"])) == []
