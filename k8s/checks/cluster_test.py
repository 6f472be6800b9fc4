"""Every overlay, and mistakes in its objects, given to a real API server with the real custom kinds."""

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.cluster import cluster
from tools.cluster.testing import running_or_skipped

COMMAND = Path("tools/kubernetes/deploy/cli").absolute()
KUBECTL = Path(os.environ.get("KUBECTL", "kubectl")).absolute()

OVERLAYS = {
    file.name.removesuffix("_with_image.yaml"): [
        item for item in yaml.safe_load_all(file.read_text()) if item
    ]
    for file in sorted(Path("k8s").glob("*_with_image.yaml"))
}

NAMESPACES = sorted({objects[0]["metadata"]["name"] for objects in OVERLAYS.values()})
AUTHORITY = [item for item in yaml.safe_load_all(Path("k8s/authority/prod.yaml").read_text()) if item]


@pytest.fixture(scope="module")
def running() -> Iterator[cluster.Cluster]:
    """Return a cluster with the custom kinds of the overlays, as their projects define them."""
    with running_or_skipped(crds=True) as running:
        yield running


def deploy(
    running: cluster.Cluster, overlay: str, folder: Path, *arguments: str, kubeconfig: Path | None = None
) -> str:
    """Deploy an overlay, as the administrator or by another kubeconfig, and return what was printed."""
    settings = folder / "deploy.yaml"
    settings.write_text("{}")
    command = [COMMAND, f"--overlay={overlay}", f"--manifests=k8s/{overlay}_with_image.yaml"]
    command += [f"--settings={settings}", f"--kubectl={KUBECTL}"]
    command += ["--push=/nonexistent", "--digest=/nonexistent", *arguments]
    environment = os.environ | {"KUBECONFIG": str(kubeconfig or running.kubeconfig)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_overlay_is_rolled_out(running: cluster.Cluster, tmp_path: Path, namespace: str) -> None:
    """Each is accepted, also by the restricted standard, and replaces another one in its namespace."""
    for name, objects in OVERLAYS.items():
        if objects[0]["metadata"]["name"] == namespace:
            check_roll_out(running, tmp_path, name)


def check_roll_out(running: cluster.Cluster, folder: Path, name: str) -> None:
    """Deploy an overlay; the cluster has its objects then, and no others, and sees no difference."""
    objects = OVERLAYS[name]
    deploy(running, name, folder, "deploy", "--yes", "--no-push")
    assert live(running, objects[0]) == {
        (item["kind"], item["metadata"]["name"]) for item in objects if item["kind"] != "Namespace"
    }, name
    again = deploy(running, name, folder, "deploy", "--dry-run").splitlines()
    assert [line for line in again if not line.startswith("  * Job/")] in ([], ["nothing changes"]), name


@pytest.mark.parametrize("name", ["prod", "staging"])
def test_its_deployer_deploys_and_deletes_it(running: cluster.Cluster, tmp_path: Path, name: str) -> None:
    """The Role of k8s/deployer has the rights for every kind, with the token of its account alone."""
    deployer = Path(f"k8s/deployer/{name}.yaml").read_text()
    running.kubectl("apply", "--server-side", "--filename=-", stdin=deployer)
    [account] = [item for item in yaml.safe_load_all(deployer) if item["kind"] == "ServiceAccount"]
    metadata = account["metadata"]
    token = running.kubectl("create", "token", metadata["name"], f"--namespace={metadata['namespace']}")
    config = json.loads(running.kubeconfig.read_text())
    config["users"] = [{"name": "admin", "user": {"token": token.strip()}}]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    arguments = ("deploy", "--yes", "--no-push")
    assert "may not" not in deploy(running, name, tmp_path, *arguments, kubeconfig=kubeconfig)
    assert "may not" not in deploy(running, name, tmp_path, "delete", "--yes", kubeconfig=kubeconfig)
    assert live(running, OVERLAYS[name][0]) == set()


def test_the_authority_is_accepted(running: cluster.Cluster) -> None:
    """What is applied before an overlay is accepted as well."""
    running.kubectl("create", "namespace", "cert-manager")
    command = ["create", "--validate=strict", "--filename=-"]
    running.kubectl(*command, stdin=yaml.safe_dump_all(AUTHORITY))


def test_what_is_beside_the_gateway_is_accepted(running: cluster.Cluster) -> None:
    """So is what is applied where the gateway of Istio is."""
    running.kubectl("create", "namespace", "istio-ingress")
    command = ["create", "--validate=strict", "--namespace=istio-ingress"]
    running.kubectl(*command, "--filename=k8s/components/istio-gateway/beside-gateway.yaml")


def live(running: cluster.Cluster, namespace: dict[str, Any]) -> set[tuple[str, str]]:
    """Return what the namespace has of ours."""
    kinds = running.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "--output=name").split()
    where = [f"--namespace={namespace['metadata']['name']}", "--selector=grpc-on-kubernetes/deployed-as"]
    found = json.loads(running.kubectl("get", ",".join(kinds), *where, "--output=json"))["items"]
    return {
        (item["kind"], item["metadata"]["name"])
        for item in found
        if "ownerReferences" not in item["metadata"] and item["kind"] != "Endpoints"
    }


def test_there_are_overlays() -> None:
    """The test above was given some."""
    assert {"dev", "prod"} <= OVERLAYS.keys()


MISTAKES = [
    # Each kind of mistake in each family: unknown field, wrong type, value that is not of the enumeration.
    ("istio", "VirtualService", "spec.http[0].retries.perTryTimout", "8s"),
    ("istio", "VirtualService", "spec.http[0].retries.attempts", "2"),
    ("istio", "DestinationRule", "spec.trafficPolicy.loadBalancer.simple", "ROUND"),
    ("istio", "PeerAuthentication", "spec.mtl", {"mode": "STRICT"}),
    ("istio", "PeerAuthentication", "spec.mtls.mode", "STRIC"),
    ("istio", "AuthorizationPolicy", "spec.rules[0].to[0].operation.port", ["50051"]),
    ("istio", "AuthorizationPolicy", "spec.rules[0].to[0].operation.ports", [50051]),
    ("istio", "AuthorizationPolicy", "spec.action", "ALOW"),
    ("istio", "Gateway", "spec.servers[0].tls.credential", "user-service-gateway-tls"),
    ("istio", "Gateway", "spec.servers[0].tls.mode", "SIMPEL"),
    ("istio", "Gateway", "spec.servers[0].port.number", "443"),
    ("istio", "Telemetry", "spec.tracing[0].randomSampling", 10),
    ("istio", "Telemetry", "spec.tracing[0].randomSamplingPercentage", "10"),
    ("traefik", "IngressRoute", "spec.routes[0].services[0].serverTransport", "user-service"),
    ("traefik", "IngressRoute", "spec.routes[0].services[0].port", 50051.5),
    ("traefik", "IngressRoute", "spec.routes[0].kind", "Rul"),
    ("traefik", "Middleware", "spec.retries", {"attempts": 3}),
    ("traefik", "Middleware", "spec.rateLimit.average", "100"),
    ("prod", "ServersTransport", "spec.rootCA", ["user-service-tls"]),
    ("prod", "ServersTransport", "spec.certificatesSecrets", "user-service-client-tls"),
    ("prod", "Certificate", "spec.privateKey.rotation", "Always"),
    ("prod", "Certificate", "spec.dnsNames", "user-service"),
    ("prod", "Certificate", "spec.privateKey.rotationPolicy", "Alwys"),
    ("authority", "ClusterIssuer", "spec.selfsigned", {}),
    ("authority", "Bundle", "spec.target.configMaps", {}),
    ("authority", "Bundle", "spec.sources[0].secret.name", ["user-service-ca"]),
    ("gateway-api", "BackendTrafficPolicy", "spec.rateLimit.local.rules[0].limit.unit", "Fortnight"),
    (
        "gateway-api",
        "BackendTrafficPolicy",
        "spec.rateLimit.local.rules[0].clientSelectors[0].sourceCidr",
        {},
    ),
    ("prod", "PodMonitor", "spec.podMetricsEndpoints[0].intervall", "15s"),
    ("prod", "PodMonitor", "spec.podMetricsEndpoints[0].port", 9090),
    ("prod", "PodMonitor", "spec.podMetricsEndpoints[0].scheme", "ftp"),
    ("prod", "PrometheusRule", "spec.groups[0].rules[0].annotation", {"summary": "-"}),
    ("prod", "PrometheusRule", "spec.groups[0].rules[0].for", 5),
    ("gateway-api", "GRPCRoute", "spec.rules[0].matches[0].method.methods", ["GetUser"]),
    ("gateway-api", "GRPCRoute", "spec.rules[0].backendRefs[0].port", "grpc"),
    ("gateway-api", "GRPCRoute", "spec.rules[0].matches[0].method.type", "Prefix"),
    ("gateway-api", "Gateway", "spec.listeners[0].tls.certificateRef", {"name": "a"}),
    ("gateway-api", "Gateway", "spec.listeners[0].port", 65536),
    ("gateway-api", "Gateway", "spec.listeners[0].tls.mode", "Terminated"),
    ("gateway-api", "BackendTrafficPolicy", "spec.timeouts", {}),
    ("gateway-api", "BackendTrafficPolicy", "spec.targetRefs[0].kind", 1),
    ("gateway-api", "ClientTrafficPolicy", "spec.connection.buferLimit", "2Mi"),
    ("gateway-api", "ClientTrafficPolicy", "spec.http2.initialStreamWindowSize", ["2Mi"]),
    # What the published schemas of Kubernetes pass.
    ("dev", "Deployment", "spec.template.spec.containers[0].imagePullPolicy", "Alwys"),
]

RULES = [
    # CEL rules; cert-manager and Prometheus Operator have none for our objects.
    ("istio", "VirtualService", "spec.http[0].timeout", "0s", "must be a valid duration greater than 1ms"),
    ("istio", "PeerAuthentication", "spec.selector", {}, "portLevelMtls requires selector"),
    ("istio", "AuthorizationPolicy", "spec.targetRefs", [], "only one of targetRefs or selector can be set"),
    ("gateway-api", "Gateway", "spec.listeners[0].protocol", "HTTP", "tls must not be specified for"),
    ("gateway-api", "GRPCRoute", "spec.rules[0].matches[0].method.service", "a/b", "must only contain valid"),
    ("gateway-api", "BackendTrafficPolicy", "spec.mergeType", "JSONMerge", "can only be used with xRoute"),
    ("gateway-api", "ClientTrafficPolicy", "spec.targetRefs[0].kind", "GRPCRoute", "kind of Gateway or"),
    ("prod", "ServersTransport", "spec.rootCAs[0].secret", "a", "cannot have both Secret and ConfigMap"),
]


def refusal(running: cluster.Cluster, overlay: str, kind: str, field: str, value: Any) -> str:
    """Return why the first object of a kind in an overlay is refused with this value in a field."""
    objects = AUTHORITY if overlay == "authority" else OVERLAYS[overlay]
    manifest = node = copy.deepcopy(next(item for item in objects if item["kind"] == kind))
    if "namespace" in manifest["metadata"]:
        manifest["metadata"]["namespace"] = "default"
    *path, last = re.findall(r"\w+", field)
    for step in path:
        node = node[int(step) if step.isdecimal() else step]
    node[last] = value
    command = ["create", "--dry-run=server", "--validate=strict", "--filename=-"]
    with pytest.raises(cluster.ClusterError) as refused:
        running.kubectl(*command, stdin=json.dumps(manifest))
    return str(refused.value)


OF_COMPONENTS = [
    (
        "external-secrets.io/v1",
        "ExternalSecret",
        {"secretStoreRef": {"name": "a"}, "data": [{"secretKey": "url", "remoteRef": {"key": "a"}}]},
        "refreshIntervall",
    ),
    (
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        {"selector": {"matchLabels": {"app": "a"}}, "endpoints": [{"port": "metrics"}]},
        "endpoint",
    ),
]
"""Kinds that no overlay has, but a component that an overlay may take; and a field that they don't have."""


@pytest.mark.parametrize(("version", "kind", "spec", "unknown"), OF_COMPONENTS, ids=str)
def test_kinds_of_components(
    running: cluster.Cluster, version: str, kind: str, spec: dict[str, Any], unknown: str
) -> None:
    """An object is accepted, and one with a field that its kind does not have is refused."""
    manifest = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    command = ["create", "--dry-run=server", "--validate=strict", "--filename=-"]
    running.kubectl(*command, stdin=json.dumps(manifest))
    with pytest.raises(cluster.ClusterError, match=f'unknown field "spec.{unknown}"'):
        running.kubectl(*command, stdin=json.dumps(manifest | {"spec": spec | {unknown: {}}}))


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_mistakes(running: cluster.Cluster, mistake: tuple[Any, ...]) -> None:
    """An unknown field, a wrong type or a value out of range is refused, with the path where it is."""
    _, _, field, _ = mistake
    assert field in refusal(running, *mistake)


@pytest.mark.parametrize("mistake", RULES, ids=str)
def test_rules(running: cluster.Cluster, mistake: tuple[Any, ...]) -> None:
    """What no type forbids but a rule of the project is refused, in the rule's words."""
    *spoilt, rule = mistake
    assert rule in refusal(running, *spoilt)
