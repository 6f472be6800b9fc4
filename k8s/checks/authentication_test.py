from pathlib import Path

import pytest
import yaml

from k8s.checks import authentication, methods, network
from k8s.checks.authentication import OPEN
from k8s.checks.rendered import OVERLAYS
from k8s.checks.servers import servers
from k8s.checks.testing import (
    REMOVED,
    changed,
    config_map,
    configured,
    overlay,
    texts,
    with_variables,
    without,
)

CREATE, GET, LIST = [f"/user.UserService/{name}" for name in ("CreateUser", "GetUser", "ListUsers")]
METHODS = list(methods.METHODS)
ANNOTATION = f"metadata.annotations[{OPEN}]"
ROUTE = "IngressRoute/user-service"
TRANSPORT = "ServersTransport/user-service"
NGINX = "nginx.ingress.kubernetes.io/"


def found(manifests):
    """Return what the rule says."""
    return texts(authentication.ask_who_calls_from_outside, manifests)


def open_methods(manifests):
    """Return the methods that the rule finds open, with their reasons."""
    return [
        tuple(text.split("anybody may call ")[1].split(";")[0].split(" from outside: "))
        for text in found(manifests)
    ]


def rules():
    """Return who may call what in prod."""
    return yaml.safe_load(config_map(overlay("prod"))["data"]["config.yaml"])["server"]["allowed_callers"]


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("traefik", ROUTE),
        ("nginx-ingress", "Ingress/user-service"),
        ("gateway-api", "GRPCRoute/user-service"),
    ],
)
def test_an_open_edge_says_so(name, route):
    """Without the annotation each method of a trial is an error, which says what would be right."""
    manifests = changed(name, (route, ANNOTATION, REMOVED))
    no_list = "server.allowed_callers has no list for it"
    assert open_methods(manifests) == [(method, no_list) for method in METHODS]
    assert all(text.startswith(f"{route}: spec.r") and OPEN in text for text in found(manifests))


def test_one_method_is_declared():
    """An annotation opens the methods that it names, and no others."""
    manifests = changed("traefik", (ROUTE, ANNOTATION, GET))
    assert {method for method, _ in open_methods(manifests)} == {CREATE, LIST}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("prod", GET, f"{GET} is not open by this route; take it out"),
        ("traefik", f"{' '.join(METHODS)} /user.UserService/GetUsr", "/user.UserService/GetUsr is no method"),
    ],
)
def test_declared_for_nothing(name, value, text):
    """What is declared open and is not is an error: it would be open unseen later."""
    [problem] = found(changed(name, (ROUTE, "metadata.annotations", {OPEN: value})))
    assert text in problem


def test_no_list_for_one_method():
    """A list for two methods leaves the third one open, unless `*` closes it."""
    some = {method: ["scope:a"] for method in (CREATE, GET)}
    assert open_methods(configured("prod", allowed_callers=some)) == [
        (LIST, "server.allowed_callers has no list for it")
    ]
    assert found(configured("prod", allowed_callers=some | {"*": []})) == []


def test_proxy_on_a_list():
    """A list with the name of the edge's own certificate, however it is written, lets everybody in."""
    allowed = rules() | {LIST: ["scope:users.list", "User-Service-Edge"]}
    assert open_methods(configured("prod", allowed_callers=allowed, proxies=[])) == [
        (LIST, "the proxy itself, DNS:user-service-edge, may call it for whoever comes")
    ]


def test_proxy_with_the_certificate_of_clients():
    """An edge that shows the clients' certificate is a colleague to the server."""
    secret = (TRANSPORT, "spec.certificatesSecrets", ["user-service-client-tls"])
    reason = "the proxy itself, DNS:user-service-client, may call it for whoever comes"
    assert open_methods(changed("prod", secret)) == [(method, reason) for method in METHODS]


def test_proxy_with_another_name():
    """Names of the edge's certificate that are on a list count, if none of them is a proxy's."""
    names = ("Certificate/user-service-edge-client", "spec.dnsNames", ["other", "user-service-client"])
    assert len(open_methods(changed("prod", names))) == 3
    names = (
        "Certificate/user-service-edge-client",
        "spec.dnsNames",
        ["user-service-edge", "user-service-client"],
    )
    assert open_methods(changed("prod", names)) == []


def test_proxy_with_two_certificates():
    """Of two certificates a proxy shows either, so both must be a proxy's."""
    both = ["user-service-client-tls", "user-service-edge-client-tls"]
    assert len(open_methods(changed("prod", (TRANSPORT, "spec.certificatesSecrets", both)))) == 3


@pytest.mark.parametrize(
    ("secret", "problems"), [("user-service-client-tls", 3), ("user-service-edge-client-tls", 0)]
)
def test_proxy_of_connections(secret, problems):
    """What passes connections on with a certificate of its own is a proxy as well."""
    manifests = changed("prod")
    service = {"name": "user-service", "port": "grpc", "tls": True, "serversTransport": "a"}
    here = {"name": "a", "namespace": "user-service"}
    routes = [{"match": "HostSNI(`*`)", "services": [service]}]
    manifests.objects += [
        {"kind": "IngressRouteTCP", "metadata": here, "spec": {"routes": routes, "tls": {}}},
        {"kind": "ServersTransportTCP", "metadata": here, "spec": {"tls": {"certificatesSecrets": [secret]}}},
    ]
    assert len(found(manifests)) == problems


@pytest.mark.parametrize("wrong", ["Service/user-service", "Middleware/user-service-retry"])
def test_declared_in_the_wrong_place(wrong):
    """What is declared where nothing leads in is an error: it would open the object once it does."""
    [problem] = found(changed("prod", (wrong, "metadata.annotations", {OPEN: GET})))
    assert problem.startswith(f"{wrong}: {ANNOTATION}: leads to no server from outside; take it out")


def test_proxy_with_an_unknown_certificate():
    """A certificate that is not here may be on a list."""
    secret = (TRANSPORT, "spec.certificatesSecrets", ["somebody-tls"])
    assert {reason.partition(",")[0] for _, reason in open_methods(changed("prod", secret))} == {
        "it is not said here which certificate the proxy has"
    }
    only_tokens = {"*": ["scope:a"]}
    manifests = configured("prod", allowed_callers=only_tokens)
    [transport] = manifests.of_kind("ServersTransport")
    transport["spec"]["certificatesSecrets"] = ["somebody-tls"]
    assert found(manifests) == []


def test_file_of_another_component():
    """A configuration without the lists opens everything, however the rest of prod is."""
    manifests = configured("prod", allowed_callers={}, proxies=[])
    assert [method for method, _ in open_methods(manifests)] == METHODS


def test_one_of_two_routes():
    """A second route whose certificate for the server is unknown is an error for what it takes."""
    manifests = changed("prod")
    service = {"name": "user-service", "port": "grpc", "scheme": "https"}
    rule = {"kind": "Rule", "match": f"Host(`b`) && PathPrefix(`{GET}`)", "services": [service]}
    metadata = {"name": "second", "namespace": "user-service"}
    manifests.objects.append({"kind": "IngressRoute", "metadata": metadata, "spec": {"routes": [rule]}})
    [text] = found(manifests)
    assert text.startswith(f"IngressRoute/second: spec.routes[0]: anybody may call {GET} from outside: ")


@pytest.mark.parametrize(
    "change",
    [
        ("Service/user-service", "spec.type", "LoadBalancer"),
        ("Service/user-service", "spec.type", "NodePort"),
        ("Service/user-service", "spec.externalIPs", ["192.0.2.1"]),
        ("Deployment/user-service", "spec.template.spec.hostNetwork", True),
        ("Deployment/user-service", "spec.template.spec.containers.0.ports.0.hostPort", 50051),
    ],
    ids=lambda change: f"{change[1]}",
)
def test_no_proxy_at_all(change):
    """A port that is published takes whoever reaches it, unless the server asks for certificates itself."""
    assert [method for method, _ in open_methods(changed("dev", change))][:3] == METHODS
    assert found(changed("prod", change)) == []


def test_listener_in_plaintext():
    """A second address without TLS is one without certificates."""
    manifests = configured(
        "prod", listen=[{"address": ":50053", "tls": False}], allowed_callers={}, proxies=[]
    )
    manifests.objects = [each for each in manifests.objects if each["kind"] != "IngressRoute"]
    assert found(manifests) == []
    [service] = [each for each in manifests.of_kind("Service") if each["metadata"]["name"] == "user-service"]
    service["spec"]["type"] = "LoadBalancer"
    service["spec"]["ports"] = [{"name": "plain", "port": 80, "targetPort": 50053}]
    assert [method for method, _ in open_methods(manifests)] == METHODS


def test_reflection_from_outside():
    """Reflection is a method as well, where it is on and a route leads to it."""
    manifests = with_variables(
        changed("traefik", (ROUTE, "spec.routes.0.match", "Host(`a`)")), REFLECTION="true"
    )
    [(method, _)] = open_methods(manifests)
    assert method == "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize(
    ("kind", "problems"), [("RequireAndVerifyClientCert", 0), ("VerifyClientCertIfGiven", 3)]
)
def test_edge_that_asks_for_certificates(kind, problems):
    """An edge that refuses whoever has no certificate is one that asks; one that takes both is not."""
    manifests = changed("traefik", (ROUTE, ANNOTATION, REMOVED), (ROUTE, "spec.tls.options", {"name": "a"}))
    spec = {"clientAuth": {"clientAuthType": kind, "secretNames": ["a"]}}
    metadata = {"name": "a", "namespace": "user-service-trial"}
    manifests.objects.append({"kind": "TLSOption", "metadata": metadata, "spec": spec})
    assert len(found(manifests)) == problems


@pytest.mark.parametrize(
    ("match", "others", "problems"),
    [
        ("Host(`a`) && PathPrefix(`/user.`)", "Host(`b`)", 0),
        ("Host(`a`, `b`)", "Host(`c`)", 0),
        ("PathPrefix(`/user.`)", "Host(`b`)", 3),
        ("HostRegexp(`.*`)", "Host(`b`)", 3),
        ("!Host(`a`)", "Host(`b`)", 3),
        ("Host(`a`) || PathPrefix(`/user.`)", "Host(`b`)", 3),
        ("Host(`a`)", "Host(`A`) && PathPrefix(`/other/`)", 3),
    ],
)
def test_hosts_that_certificates_are_asked_for(match, others, problems):
    """TLS options hold for the hosts of a rule; without one, or where routes differ, the default ones do."""
    manifests = changed(
        "traefik",
        (ROUTE, ANNOTATION, REMOVED),
        (ROUTE, "spec.tls.options", {"name": "a"}),
        (ROUTE, "spec.routes.0.match", match),
    )
    here = {"namespace": "user-service-trial"}
    spec = {"clientAuth": {"clientAuthType": "RequireAndVerifyClientCert", "secretNames": ["a"]}}
    manifests.objects.append({"kind": "TLSOption", "metadata": {"name": "a"} | here, "spec": spec})
    spec = {"routes": [{"match": others, "services": [{"name": "other"}]}], "tls": {}}
    manifests.objects.append({"kind": "IngressRoute", "metadata": {"name": "b"} | here, "spec": spec})
    assert len(found(manifests)) == problems


@pytest.mark.parametrize(
    "change",
    [
        (f"metadata.annotations[{NGINX}ssl-redirect]", "false"),
        ("spec.tls.0.hosts", ["other.example.com"]),
        ("spec.rules.0.host", REMOVED),
    ],
)
def test_nginx_that_lets_in_without_tls(change):
    """Where nginx takes calls in plaintext it asks for no certificate."""
    ingress = "Ingress/user-service"
    asks = (ingress, f"metadata.annotations[{NGINX}auth-tls-secret]", "a/b")
    closed = [(ingress, ANNOTATION, REMOVED), asks]
    assert found(changed("nginx-ingress", *closed)) == []
    assert len(found(changed("nginx-ingress", *closed, (ingress, *change)))) == 3


@pytest.mark.parametrize(
    ("annotations", "problems"),
    [({"auth-tls-secret": "a/b"}, 0), ({"auth-tls-secret": "a/b", "auth-tls-verify-client": "optional"}, 3)],
)
def test_nginx_that_asks_for_certificates(annotations, problems):
    """So it is with nginx."""
    given = {f"nginx.ingress.kubernetes.io/{name}": value for name, value in annotations.items()}
    assert (
        len(found(changed("nginx-ingress", ("Ingress/user-service", "metadata.annotations", given))))
        == problems
    )


@pytest.mark.parametrize(
    ("tls", "problems"),
    [
        ({"clientValidation": {"caCertificateRefs": [{"name": "a"}]}}, 0),
        ({"clientValidation": {"caCertificateRefs": [{"name": "a"}], "optional": True}}, 3),
        ({"minVersion": "1.3"}, 3),
    ],
)
def test_gateway_that_asks_for_certificates(tls, problems):
    """And with Envoy Gateway."""
    route, policy = "GRPCRoute/user-service", "ClientTrafficPolicy/user-service"
    assert (
        len(found(changed("gateway-api", (route, ANNOTATION, REMOVED), (policy, "spec.tls", tls))))
        == problems
    )


@pytest.mark.parametrize(("mode", "problems"), [("MUTUAL", 0), ("OPTIONAL_MUTUAL", 3), ("SIMPLE", 3)])
def test_istios_gateway_that_asks_for_certificates(mode, problems):
    """And with the Gateway of Istio."""
    route, gateway = "VirtualService/user-service-gateway", "Gateway/user-service"
    manifests = changed("istio", (route, ANNOTATION, REMOVED), (gateway, "spec.servers.0.tls.mode", mode))
    assert len(found(manifests)) == problems


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (("Gateway/user-service", "spec.listeners.0.protocol", "HTTP"), 3),
        (("ClientTrafficPolicy/second", "spec.targetRefs.0.sectionName", "grpc"), 3),
        (("ClientTrafficPolicy/second", "spec.targetRefs.0.sectionName", "other"), 0),
    ],
)
def test_listener_that_asks_nobody(change, problems):
    """A listener in plaintext, or with a policy of its own, does not ask as its Gateway does."""
    asked = {"clientValidation": {"caCertificateRefs": [{"name": "a"}]}}
    manifests = changed(
        "gateway-api",
        ("GRPCRoute/user-service", ANNOTATION, REMOVED),
        ("ClientTrafficPolicy/user-service", "spec.tls", asked),
    )
    targets = [{"kind": "Gateway", "name": "user-service", "sectionName": "other"}]
    metadata = {"name": "second", "namespace": "user-service-trial"}
    manifests.objects.append(
        {"kind": "ClientTrafficPolicy", "metadata": metadata, "spec": {"targetRefs": targets}}
    )
    title, path, value = change
    [changed_one] = [
        each for each in manifests.objects if f"{each['kind']}/{each['metadata']['name']}" == title
    ]
    *keys, last = (int(key) if key.isdecimal() else key for key in path.split("."))
    for key in keys:
        changed_one = changed_one[key]
    changed_one[last] = value
    assert len(found(manifests)) == problems


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"TLS_REQUIRE_CLIENT_CERTIFICATE": "false"}, "server.proxies are SANs, which need"),
        ({"TLS_DIRECTORY": "", "TLS_REQUIRE_CLIENT_CERTIFICATE": "false"}, "'user-service-client' is a SAN"),
    ],
)
def test_variable_that_switches_it_off(variables, text):
    """A server that can't know the callers that it names does not start, and the lint says why."""
    manifests = with_variables(changed("prod"), **variables)
    assert any(
        text in line for line in texts(authentication.start_with_the_callers_that_they_name, manifests)
    )


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ({"jwt": None}, "'scope:users.list' is of a token, which needs server.jwt"),
        ({"proxies": ["user-service-client"]}, "is one of server.proxies, and so never a caller"),
        (
            {"allowed_callers": {"/user.UserService/ListUser": []}},
            "did you mean /user.UserService/ListUsers?",
        ),
    ],
)
def test_callers_that_mean_nothing(server, text):
    """So it is with a list that contradicts other settings."""
    manifests = configured("prod", **server)
    assert any(
        text in line for line in texts(authentication.start_with_the_callers_that_they_name, manifests)
    )


def test_issuer_that_is_out_of_reach():
    """A server that may not reach its issuer can check no token; keys in a file need no way out."""
    manifests = without("prod", "NetworkPolicy/user-service-to-issuer")
    [text] = texts(network.let_servers_out_to_issuers, manifests)
    assert "no NetworkPolicy lets it out to port 443 (server.jwt.jwks)" in text
    manifests = with_variables(changed("prod"), JWT_JWKS="https://issuer.example.com:8443/keys")
    [text] = texts(network.let_servers_out_to_issuers, manifests)
    assert "8443" in text
    assert (
        texts(network.let_servers_out_to_issuers, with_variables(manifests, JWT_JWKS="/etc/keys.json")) == []
    )


def test_configuration_is_that_of_base():
    """What authentication adds to config.yaml are three settings of the server, and no other differs."""
    base, ours = (
        yaml.safe_load(Path(f"k8s/{folder}/config.yaml").read_text("utf-8"))
        for folder in ("base", "components/authentication")
    )
    added = {name: ours["server"].pop(name) for name in ("jwt", "proxies", "allowed_callers")}
    assert ours == base
    assert all(added.values())


def test_no_token_of_one_environment_is_good_in_another():
    """Each environment has an audience of its own."""
    audiences = {
        server.config.server.jwt.audience for name in ("prod", "staging") for server in servers(overlay(name))
    }
    assert len(audiences) == 2


def test_every_open_overlay_says_so_first():
    """Whoever opens the kustomization of an open overlay reads it in the first line."""
    opened = [name for name in OVERLAYS if any(OPEN in str(each) for each in overlay(name).objects)]
    assert opened == ["gateway-api", "istio", "nginx-ingress", "traefik"]
    for name in opened:
        first = Path(f"k8s/overlays/{name}/kustomization.yaml").read_text("utf-8").splitlines()[0]
        assert "open to everyone" in first
