from pathlib import Path

import pytest
import yaml

from k8s.checks.manifests import Manifests, get
from k8s.checks.mesh import (
    allow_what_there_is,
    name_callers,
    name_grpc_as_such,
    outlive_what_they_serve,
)
from k8s.checks.servers import servers
from k8s.checks.testing import REMOVED, changed, configured, overlay, texts

LABELS = "spec.template.metadata.labels"
NAMESPACE = "metadata.labels[istio-injection]"
INJECT = ("Deployment/user-service", f"{LABELS}[sidecar.istio.io/inject]")


def port(value, field="appProtocol"):
    """Return the change of a field of a Service's port."""
    return ("Service/user-service", f"spec.ports.0.{field}", value)


@pytest.mark.parametrize(
    ("changes", "field", "found"),
    [
        ([port("kubernetes.io/h2c")], "appProtocol", "kubernetes.io/h2c"),
        ([port("http")], "appProtocol", "http"),
        ([port("grpc-web")], "appProtocol", "grpc-web"),
        ([port("api", "name"), port(REMOVED)], "name", "api"),
        ([port(REMOVED, "name"), port(REMOVED)], "name", None),
    ],
)
def test_port_that_is_no_grpc_to_istio(changes, field, found):
    """In a mesh appProtocol, or else the name of the port, says that calls are gRPC."""
    [text] = texts(name_grpc_as_such, changed("istio", *changes))
    assert text.startswith("Service/user-service: spec.ports[")
    assert text.endswith(
        f".{field}: is {found}, so that Istio does not take it for gRPC; set appProtocol to grpc"
    )


@pytest.mark.parametrize(
    "changes",
    [
        [port("GRPC")],
        [port(REMOVED)],
        [port("grpc-users", "name"), port(REMOVED)],
        [port("http"), port("metrics", "targetPort")],
        [port("http"), (*INJECT, "false")],
    ],
)
def test_port_that_is_well_named(changes):
    """The name is enough, its end is free, and neither other ports nor pods without a sidecar matter."""
    assert texts(name_grpc_as_such, changed("istio", *changes)) == []


def test_mesh_by_the_namespace():
    """A namespace whose pods get sidecars is told of both of its Services."""
    inside = changed("dev", ("Namespace/user-service-dev", "metadata.labels[istio-injection]", "enabled"))
    assert len(texts(name_grpc_as_such, inside)) == 2
    assert texts(name_grpc_as_such, configured("dev")) == []


POLICY = "AuthorizationPolicy/user-service"
FROM = "spec.rules.0.from"
PATHS = "spec.rules.0.to.0.operation.paths"


@pytest.mark.parametrize(
    "sources",
    [
        REMOVED,
        [],
        [{"source": {}}],
        [{"source": {"principals": ["*"]}}],
        [{"source": {"namespaces": ["user-service-trial"]}}],
        [{"source": {"ipBlocks": ["10.0.0.0/8"]}}],
        [{"source": {"serviceAccounts": ["a"]}}, {"source": {"namespaces": ["b"]}}],
    ],
)
def test_callers_without_a_name(sources):
    """Everybody of the mesh, a namespace and a range of addresses are no names of callers."""
    [text] = texts(name_callers, changed("istio", (POLICY, FROM, sources)))
    assert text == (
        f"{POLICY}: spec.rules[0].from: lets callers in who are not named; "
        "name their serviceAccounts, or principals without *"
    )


@pytest.mark.parametrize(
    "changes",
    [
        [(POLICY, FROM, [{"source": {"principals": ["cluster.local/ns/a/sa/b", "*/ns/a/sa/c"]}}])],
        [(POLICY, FROM, REMOVED), (POLICY, PATHS, ["/grpc.health.v1.Health/*"])],
        [(POLICY, FROM, REMOVED), (POLICY, "spec.rules.0.to.0.operation.ports", ["9090"])],
        [(POLICY, FROM, REMOVED), (POLICY, "spec.action", "DENY")],
        [(POLICY, FROM, REMOVED), (POLICY, "spec.selector.matchLabels", {"app": "other"})],
    ],
)
def test_callers_with_a_name(changes):
    """Accounts are names, and nobody is asked for one of other methods, ports and pods."""
    assert texts(name_callers, changed("istio", *changes)) == []


@pytest.mark.parametrize("path", ["/user.Users/*", "/user.UserService/List", "*.UserService", ""])
def test_path_of_nothing(path):
    """A path of a policy that no method has would be open to nobody."""
    [text] = texts(allow_what_there_is, changed("istio", (POLICY, PATHS, ["/user.UserService/*", path])))
    where = f"{POLICY}: spec.rules[0].to[0].operation.paths"
    assert text.startswith(f"{where}: {path} is no method of the server; take some of /user.UserService/")


@pytest.mark.parametrize(
    "changes",
    [
        [(POLICY, PATHS, ["*", "*/GetUser", "/grpc.health.v1.Health/*"])],
        [(POLICY, PATHS, REMOVED)],
        [(POLICY, PATHS, ["/other/*"]), (POLICY, "spec.rules.0.to.0.operation.ports", ["8080"])],
    ],
)
def test_path_of_something(changes):
    """Patterns, health, and what is of another port are fine."""
    assert texts(allow_what_there_is, changed("istio", *changes)) == []


def test_mesh_without_a_policy():
    """Where no policy is about the server, whoever is in the mesh may call it."""
    manifests = changed("istio")
    manifests.objects = [each for each in manifests.objects if each["kind"] != "AuthorizationPolicy"]
    [text] = texts(name_callers, manifests)
    assert "no AuthorizationPolicy says who of the mesh may call it; add one with serviceAccounts" in text
    assert texts(name_callers, overlay("prod")) == []


NATIVE = "spec.template.metadata.annotations[sidecar.istio.io/nativeSidecar]"
JOB = "Job/user-service-migrate"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([], []),
        ([("Deployment/user-service", NATIVE, "false")], ["Deployment/user-service"]),
        ([("Deployment/user-service", NATIVE, REMOVED)], ["Deployment/user-service"]),
        ([("Deployment/user-service", NATIVE, REMOVED), (*INJECT, "false")], []),
        ([(JOB, f"{LABELS}[sidecar.istio.io/inject]", "true")], [JOB]),
        ([(JOB, f"{LABELS}[sidecar.istio.io/inject]", "true"), (JOB, NATIVE, "true")], []),
        ([(JOB, LABELS, {}), ("Namespace/user-service-trial", NAMESPACE, "enabled")], [JOB]),
    ],
)
def test_sidecar_that_ends_too_early_or_never(changes, found):
    """A server's sidecar that ends before the calls do, and a Job's that doesn't end, are told of."""
    said = texts(outlive_what_they_serve, changed("istio", *changes))
    assert [text.partition(":")[0] for text in said] == found
    assert all(f"{NATIVE}: does not say that the sidecar is a native one" in text for text in said)


def test_sidecars_trace_as_many_calls_as_servers():
    """Whether a trace begins at a sidecar or at the server, as many calls have one."""
    manifests = overlay("istio")
    [telemetry] = manifests.of_kind("Telemetry")
    [server] = servers(manifests)
    rates = [each["randomSamplingPercentage"] for each in telemetry["spec"]["tracing"]]
    assert rates == [100 * server.config.tracing.sampling_rate]


def test_one_gateway():
    """All that is said of the gateway is of the same pods, host and Secret, wherever it is said."""
    manifests = overlay("istio")
    text = Path("k8s/components/istio-gateway/beside-gateway.yaml").read_text("utf-8")
    beside = Manifests(yaml.safe_load_all(text))
    [gateway], [limits] = manifests.of_kind("Gateway"), beside.of_kind("EnvoyFilter")
    [certificate] = beside.of_kind("Certificate")
    way_in = manifests.named("NetworkPolicy", "user-service-from-istio-ingress", "user-service-trial")
    route = manifests.named("VirtualService", "user-service-gateway", "user-service-trial")
    callers = manifests.named("AuthorizationPolicy", "user-service-gateway", "user-service-trial")

    pods = get(gateway, "spec.selector")
    assert pods == get(limits, "spec.workloadSelector.labels")
    assert pods == get(way_in, "spec.ingress[].from[].podSelector.matchLabels")
    [server] = get(gateway, "spec.servers")
    assert server["tls"]["credentialName"] == get(certificate, "spec.secretName")
    hosts = [host.removeprefix("./") for host in server["hosts"]]
    assert hosts == get(route, "spec.hosts") == get(certificate, "spec.dnsNames")
    assert hosts == [get(limits, "spec.configPatches[].match.listener.filterChain.sni")]
    [namespace] = get(way_in, "spec.ingress[].from[].namespaceSelector.matchLabels").values()
    accounts = get(callers, "spec.rules[].from[].source.serviceAccounts")
    assert [each.partition("/")[0] for each in accounts] == [namespace]
    assert get(route, "metadata.annotations")["grpc-on-kubernetes/rate-limit"].startswith(f"{namespace}/")
