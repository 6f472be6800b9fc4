import pytest

from k8s.checks import references
from k8s.checks.manifests import External, Manifests
from k8s.checks.testing import REMOVED, changed, overlay, texts, without

DEPLOYMENT = "Deployment/user-service"
POD = "spec.template.spec"
LIMIT = "metadata.annotations[grpc-on-kubernetes/rate-limit]"
CONTAINER = f"{POD}.containers[user-service]"


def missing(name, *changes):
    """Return what is said of names in an overlay with changes, without the advice."""
    return [text.partition(";")[0] for text in texts(references.name_what_exists, changed(name, *changes))]


@pytest.mark.parametrize(
    ("name", "manifest", "path", "value", "text"),
    [
        ("prod", DEPLOYMENT, f"{POD}.serviceAccountName", "users", "there is no ServiceAccount users"),
        ("prod", "RoleBinding/user-service-resolver", "roleRef.name", "x", "there is no Role x"),
        ("prod", "RoleBinding/user-service-resolver", "subjects.0.name", "x", "there is no ServiceAccount x"),
        (
            "prod",
            "HorizontalPodAutoscaler/user-service",
            "spec.scaleTargetRef.name",
            "x",
            "there is no Deployment x",
        ),
        ("prod", "Certificate/user-service", "spec.issuerRef.name", "x", "there is no ClusterIssuer x"),
        ("prod", "Certificate/user-service-edge", "spec.issuerRef.name", "x", "there is no ClusterIssuer x"),
        (
            "authority/prod",
            "ClusterIssuer/user-service-ca",
            "spec.ca.secretName",
            "x",
            "there is no Secret x",
        ),
        (
            "authority/prod",
            "Bundle/user-service-ca",
            "spec.sources.0.secret.name",
            "x",
            "there is no Secret x",
        ),
        ("prod", "IngressRoute/user-service", "spec.tls.secretName", "x", "there is no Secret x"),
        (
            "prod",
            "IngressRoute/user-service",
            "spec.routes.0.middlewares.0.name",
            "x",
            "there is no Middleware x",
        ),
        (
            "prod",
            "IngressRoute/user-service",
            "spec.routes.0.services.0.serversTransport",
            "x",
            "there is no ServersTransport x",
        ),
        ("prod", "ServersTransport/user-service", "spec.certificatesSecrets.0", "x", "there is no Secret x"),
        ("prod", "ServersTransport/user-service", "spec.rootCAs.0.secret", "x", "there is no Secret x"),
        ("prod", "ServersTransport/user-service", "spec.rootCAs.0.configMap", "x", "there is no ConfigMap x"),
        ("nginx-ingress", "Ingress/user-service", "spec.tls.0.secretName", "x", "there is no Secret x"),
        ("nginx-ingress", "Ingress/user-service", "spec.ingressClassName", "x", "there is no IngressClass x"),
        ("gateway-api", "Gateway/user-service", "spec.gatewayClassName", "x", "there is no GatewayClass x"),
        ("gateway-api", "GRPCRoute/user-service", "spec.parentRefs.0.name", "x", "there is no Gateway x"),
        (
            "gateway-api",
            "BackendTrafficPolicy/user-service-get-user",
            "spec.targetRefs.0.name",
            "x",
            "there is no GRPCRoute x",
        ),
        (
            "gateway-api",
            "ClientTrafficPolicy/user-service",
            "spec.targetRefs.0.name",
            "x",
            "there is no Gateway x",
        ),
        ("istio", "StatefulSet/user-service-postgres", "spec.serviceName", "x", "there is no Service x"),
        ("istio", "VirtualService/user-service-gateway", "spec.gateways.0", "x", "there is no Gateway x"),
        (
            "istio",
            "VirtualService/user-service-gateway",
            "spec.gateways.0",
            "other/user-service",
            "there is no Gateway user-service",
        ),
        ("istio", "VirtualService/user-service-gateway", LIMIT, "a/x", "there is no EnvoyFilter x"),
        ("istio", "Gateway/user-service", "spec.servers.0.tls.credentialName", "x", "there is no Secret x"),
    ],
)
def test_name_of_nothing(name, manifest, path, value, text):
    """A name that nothing in the overlay has, and that is not external, is told with its kind."""
    [found] = missing(name, (manifest, path, value))
    assert found.startswith(f"{manifest}: ")
    assert found.endswith(f": {text}")


def test_certificate_that_a_gateway_presents():
    """A Gateway's certificateRefs name Secrets."""
    path = "spec.listeners.0.tls.certificateRefs.0.name"
    [found] = missing("gateway-api", ("Gateway/user-service", path, "x"))
    assert found.endswith("certificateRefs[x]: there is no Secret x")


def test_variable_from_a_key_that_is_not_there():
    """The pod would not start: CreateContainerConfigError."""
    assert missing("prod", (DEPLOYMENT, f"{POD}.containers.0.env", [variable("uri")])) == [
        (
            f"{DEPLOYMENT}: {CONTAINER}.env[DATABASE_URL]: Secret user-service-database has no key uri, "
            "only ca.crt, password, url"
        )
    ]


def test_variable_that_is_optional():
    """What may be missing is no problem."""
    assert missing("prod", (DEPLOYMENT, f"{POD}.containers.0.env", [variable("uri", optional=True)])) == []


def variable(key, **options):
    """Return DATABASE_URL from a key of the external Secret."""
    source = {"name": "user-service-database", "key": key, **options}
    return {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": source}}


def test_all_variables_of_a_map_that_is_not_there():
    """`envFrom` names ConfigMaps and Secrets too."""
    sources = [{"configMapRef": {"name": "x"}}, {"secretRef": {"name": "y"}}]
    assert missing("prod", (DEPLOYMENT, f"{POD}.containers.0.envFrom", sources)) == [
        f"{DEPLOYMENT}: {CONTAINER}.envFrom: there is no ConfigMap x",
        f"{DEPLOYMENT}: {CONTAINER}.envFrom: there is no Secret y",
    ]


def test_volumes():
    """Volumes name ConfigMaps and Secrets, with `items` their keys; a projected one has several."""
    [config_map] = [
        each for each in overlay("prod").of_kind("ConfigMap") if "config" in each["metadata"]["name"]
    ]
    name = config_map["metadata"]["name"]
    sources = [{"secret": {"name": "x"}}, {"configMap": {"name": name, "items": [{"key": "k", "path": "p"}]}}]
    volumes = [{"name": "v", "projected": {"sources": sources}}, {"name": "w", "secret": {"secretName": "y"}}]
    changes = (DEPLOYMENT, f"{POD}.volumes", volumes), (DEPLOYMENT, f"{POD}.containers.0.volumeMounts", [])
    assert missing("prod", *changes) == [
        f"{DEPLOYMENT}: {POD}.volumes[v]: there is no Secret x",
        f"{DEPLOYMENT}: {POD}.volumes[v]: ConfigMap {name} has no key k, only config.yaml",
        f"{DEPLOYMENT}: {POD}.volumes[w]: there is no Secret y",
    ]


def test_claim_that_is_not_there():
    """The pod would wait for its volume for ever."""
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "x"}}
    assert missing("dev", (DEPLOYMENT, f"{POD}.volumes.0", claim)) == [
        f"{DEPLOYMENT}: {POD}.volumes[data]: there is no PersistentVolumeClaim x"
    ]


def test_server_whose_certificates_nobody_makes():
    """A server with client certificates needs ca.crt, which an ACME certificate does not have."""
    volume = {"name": "certificates", "secret": {"secretName": "user-service-edge-tls"}}
    [found] = missing("prod", (DEPLOYMENT, f"{POD}.volumes", [volume]))
    assert found == (
        f"{DEPLOYMENT}: {POD}.volumes[certificates]: "
        "Secret user-service-edge-tls has no key ca.crt, only tls.crt, tls.key"
    )


def test_certificate_that_is_not_there():
    """Without the Certificate nobody makes the Secret, for the server or for Traefik."""
    [found] = {*texts(references.name_what_exists, without("prod", "Certificate/user-service"))}
    assert found.startswith(f"{DEPLOYMENT}: ")
    assert "there is no Secret user-service-tls" in found
    edge = without("prod", "Certificate/user-service-edge-client")
    [found] = texts(references.name_what_exists, edge)
    assert found.startswith("ServersTransport/user-service: ")
    assert "there is no Secret user-service-edge-client-tls" in found


def test_secrets_in_annotations_of_nginx():
    """Annotations name Secrets with their namespace."""
    key = "nginx.ingress.kubernetes.io/proxy-ssl-secret"
    change = ("Ingress/user-service", f"metadata.annotations[{key}]", "user-service/x")
    assert missing("nginx-ingress", change) == [
        f"Ingress/user-service: metadata.annotations[{key}]: there is no Secret x"
    ]


def test_external_objects_that_nobody_names():
    """An entry of external.yaml that no overlay needs is found."""
    needed, needless = External("GatewayClass", "eg", "w"), External("Secret", "x", "why")
    overlays: list[Manifests] = [overlay("dev"), overlay("gateway-api")]
    assert references.unused([needed, needless], overlays) == [needless]


def test_default_account_and_users():
    """The account `default` is in each namespace; users and groups are no objects."""
    subject = {"kind": "Group", "name": "developers"}
    assert missing("prod", ("RoleBinding/user-service-resolver", "subjects", [subject])) == []
    assert missing("prod", (DEPLOYMENT, f"{POD}.serviceAccountName", "default")) == []
    assert missing("prod", (DEPLOYMENT, f"{POD}.serviceAccountName", REMOVED)) == []


def test_account_of_another_namespace():
    """A subject may be in another namespace, and then is not the one here."""
    path = "subjects.0.namespace"
    [found] = missing("prod", ("RoleBinding/user-service-resolver", path, "other"))
    assert found.endswith("subjects[user-service-client]: there is no ServiceAccount user-service-client")


def test_middleware_of_another_provider():
    """Traefik's names with a provider are not Kubernetes' objects."""
    change = ("IngressRoute/user-service", "spec.routes.0.middlewares.0.name", "gzip@file")
    assert missing("prod", change) == []


@pytest.mark.parametrize(
    ("manifest", "path", "fix"),
    [
        (
            "BackendTrafficPolicy/user-service-get-user",
            "spec.targetRefs",
            "take one of get-user, list-users, other-methods",
        ),
        (
            "GRPCRoute/user-service",
            "spec.parentRefs",
            "take one of grpc",
        ),
    ],
)
def test_section_that_is_not_there(manifest, path, fix):
    """A policy of a misspelt rule, and a route of a misspelt listener, would be ignored by the Gateway."""
    manifests = changed("gateway-api", (manifest, f"{path}.0.sectionName", "x"))
    assert texts(references.name_sections_that_exist, manifests) == [
        f"{manifest}: {path}[user-service].sectionName: user-service has no x; {fix}"
    ]


def test_section_of_a_route_without_names():
    """Rules need no names, unless a policy is for one of them."""
    rules = [{"backendRefs": [{"name": "user-service", "port": 50051}]}]
    found = texts(
        references.name_sections_that_exist,
        changed("gateway-api", ("GRPCRoute/user-service", "spec.rules", rules)),
    )
    assert [text.rpartition("; ")[2] for text in found] == [
        "name one of its parts get-user",
        "name one of its parts list-users",
    ]


def test_section_of_somebody_else():
    """What the sections of an object from elsewhere are is not known."""
    parents = [{"name": "shared", "namespace": "edge", "sectionName": "grpc"}]
    change = ("GRPCRoute/user-service", "spec.parentRefs", parents)
    assert texts(references.name_sections_that_exist, changed("gateway-api", change)) == []
