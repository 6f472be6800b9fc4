import os
from pathlib import Path

import pytest

from k8s.checks import custom_resources
from k8s.checks.rendered import OVERLAYS, load

MODELS = os.environ.get("KUBERNETES_MODELS")
PINS = Path(__file__).parent / "npm" / "package-lock.json"
INSTALL = "`tools/bazel run //k8s/checks:install_models -- FOLDER`"

pytestmark = pytest.mark.skipif(
    not MODELS,
    reason="no custom resource was validated: $KUBERNETES_MODELS is to name the folder that "
    f"{INSTALL} fills from the npm registry",
)


@pytest.fixture(scope="module")
def models():
    """Return the folder with the models, after a look whether they are those that are pinned."""
    folder = Path(MODELS)
    installed = folder / "package-lock.json"
    assert installed.exists(), f"{folder} has no models; fill it with {INSTALL}"
    assert installed.read_text() == PINS.read_text(), f"{folder} is of another version; run {INSTALL} again"
    return folder


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay, models):
    """Every object, custom or not, is valid in its project's own model and has no unknown field."""
    manifests = load(overlay)
    problems = custom_resources.validate(manifests, models)
    for manifest in manifests:
        print(manifest["apiVersion"], manifest["kind"], custom_resources.package(manifest))
    assert not problems, "\n".join(["", *(f"{overlay}: {problem}" for problem in problems)])


SPOILT = [
    # Each kind of mistake in each family: unknown field, wrong type, value that is not of the enumeration.
    ("istio", "VirtualService", "spec.http[0].retries", "perTryTimout", "8s"),
    ("istio", "VirtualService", "spec.http[0].retries", "attempts", "2"),
    ("istio", "DestinationRule", "spec.trafficPolicy.loadBalancer", "simple", "ROUND"),
    ("istio", "PeerAuthentication", "spec", "mtl", {"mode": "STRICT"}),
    ("istio", "PeerAuthentication", "spec.mtls", "mode", "STRIC"),
    ("istio", "AuthorizationPolicy", "spec.rules[0].to[0].operation", "port", ["50051"]),
    ("istio", "AuthorizationPolicy", "spec.rules[0].to[0].operation", "ports", [50051]),
    ("istio", "AuthorizationPolicy", "spec", "action", "ALOW"),
    ("traefik", "IngressRoute", "spec.routes[0].services[0]", "serverTransport", "user-service"),
    ("traefik", "IngressRoute", "spec.routes[0].services[0]", "port", 50051.5),
    ("traefik", "IngressRoute", "spec.routes[0]", "kind", "Rul"),
    ("traefik", "Middleware", "spec", "retries", {"attempts": 3}),
    ("traefik", "Middleware", "spec.retry", "attempts", "3"),
    ("prod", "ServersTransport", "spec", "rootCA", ["user-service-tls"]),
    ("prod", "ServersTransport", "spec", "certificatesSecrets", "user-service-client-tls"),
    ("prod", "Certificate", "spec.privateKey", "rotation", "Always"),
    ("prod", "Certificate", "spec", "dnsNames", "user-service"),
    ("prod", "Certificate", "spec.privateKey", "rotationPolicy", "Alwys"),
    ("prod", "Issuer", "spec", "selfsigned", {}),
    ("prod", "PodMonitor", "spec.podMetricsEndpoints[0]", "intervall", "15s"),
    ("prod", "PodMonitor", "spec.podMetricsEndpoints[0]", "port", 9090),
    ("prod", "PodMonitor", "spec.podMetricsEndpoints[0]", "scheme", "ftp"),
    ("prod", "PrometheusRule", "spec.groups[0].rules[0]", "annotation", {"summary": "-"}),
    ("prod", "PrometheusRule", "spec.groups[0].rules[0]", "for", 5),
    ("gateway-api", "GRPCRoute", "spec.rules[0].matches[0].method", "methods", ["GetUser"]),
    ("gateway-api", "GRPCRoute", "spec.rules[0].backendRefs[0]", "port", "grpc"),
    ("gateway-api", "GRPCRoute", "spec.rules[0].matches[0].method", "type", "Prefix"),
    ("gateway-api", "Gateway", "spec.listeners[0].tls", "certificateRef", {"name": "a"}),
    ("gateway-api", "Gateway", "spec.listeners[0]", "port", 65536),
    ("gateway-api", "Gateway", "spec.listeners[0].tls", "mode", "Terminated"),
    ("gateway-api", "BackendTrafficPolicy", "spec", "timeouts", {}),
    ("gateway-api", "BackendTrafficPolicy", "spec.targetRefs[0]", "kind", 1),
    # Names with a slash.
    ("istio", "PeerAuthentication", "spec", "istio.io/mode", "STRICT"),
    ("istio", "PeerAuthentication", "spec.selector.matchLabels", "app.kubernetes.io/name", 1),
    # What the published schemas of Kubernetes pass.
    ("dev", "Deployment", "spec.template.spec.containers[0]", "imagePullPolicy", "Alwys"),
    ("dev", "Deployment", "spec.template.spec.containers[0].resources.limits", "cpu", "5mm"),
]


def spoil(overlay, kind, path, name, value):
    """Return the first object of this kind in an overlay, with a mistake in the field `path.name`."""
    manifest = node = next(manifest for manifest in load(overlay) if manifest["kind"] == kind)
    for step in path.replace("[", ".[").split("."):
        node = node[int(step.strip("[]")) if step.startswith("[") else step]
    node[name] = value
    return manifest


def test_mistakes(models):
    """An unknown field, a wrong type or a value out of range is refused, with the path where it is."""
    manifests = [spoil(*mistake) for mistake in SPOILT]
    problems = custom_resources.validate(manifests, models)
    for mistake, manifest in zip(SPOILT, manifests, strict=True):
        _, _, path, name, _ = mistake
        fields = [problem.field for problem in problems if problem.manifest is manifest]
        assert fields, f"passed: {mistake}"
        assert all(field.startswith(f"{path}.{name}") for field in fields), (mistake, fields)


def test_what_a_problem_says(models):
    """A problem names the object and the field, and what would be right."""
    gateway = spoil("gateway-api", "Gateway", "spec.listeners[0].tls", "mode", "Terminated")
    gateway["spec"]["listener"] = []
    assert "\n".join(map(str, custom_resources.validate([gateway], models))) == (
        "Gateway/user-service: spec.listeners[0].tls.mode: wrong value; "
        "must be equal to one of the allowed values: Terminate, Passthrough\n"
        "Gateway/user-service: spec.listener: unknown field; "
        "@kubernetes-models/gateway-api has none of this name here"
    )


def test_a_kind_without_a_model(models):
    """An object that no package has a model of is named, not passed over."""
    manifest = {"apiVersion": "traefik.io/v1alpha1", "kind": "IngressRout", "metadata": {"name": "a"}}
    [problem] = custom_resources.validate([manifest], models)
    assert problem.what == "@kubernetes-models/traefik has no traefik.io/v1alpha1 IngressRout"
