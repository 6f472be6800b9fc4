import subprocess

import pytest
import trustme
import yaml

from k8s.checks.manifests import title
from k8s.checks.rendered import OVERLAYS, load
from k8s.checks.testing import changed
from tools.cluster import cluster
from tools.cluster.testing import running_or_skipped

BESIDE = "k8s/components/istio-gateway/beside-gateway.yaml"
IN_MESH = [name for name in OVERLAYS if any(".istio.io/" in each["apiVersion"] for each in load(name))]
PROTOCOL = "doesn't follow Istio protocol selection"


@pytest.fixture(scope="module")
def run():
    """Return what runs istioctl, and returns its exit code and all that it says."""
    try:
        program = cluster.control_planes() / "istioctl"
    except cluster.MissingProgramError as missing:
        pytest.skip(str(missing))

    def run(*arguments):
        done = subprocess.run(
            [program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout

    return run


def write(folder, name, objects):
    """Write objects to a file; return it."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    return file


def test_there_are_overlays_in_a_mesh():
    """The tests below are given some."""
    assert "istio" in IN_MESH


@pytest.mark.parametrize("name", IN_MESH)
def test_overlay_is_valid(run, tmp_path, name):
    """What Istio's webhook and its advice say of each object of a mesh: nothing."""
    code, said = run("validate", "--filename", write(tmp_path, name, load(name)))
    assert (code, said.strip().splitlines()[-1:]) == (0, [f'"{tmp_path / name}.yaml" is valid']), said


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name not in IN_MESH])
def test_overlay_outside_of_a_mesh(run, tmp_path, name):
    """Of all others it says that it does not know kubernetes.io/h2c, which is for Gateway API; no more."""
    _, said = run("validate", "--filename", write(tmp_path, name, load(name)))
    errors = [line for line in said.splitlines() if line.lstrip().startswith("*")]
    assert all(PROTOCOL in line for line in errors), said


def test_what_is_beside_the_gateway(run):
    """So is what is applied where the gateway is."""
    code, said = run("validate", "--filename", BESIDE)
    assert code == 0, said


def analyze(run, *arguments):
    """Return what an analysis warns of, but for the message that every EnvoyFilter gets: that it is one."""
    # In all namespaces: else it is of "default" alone, where there is nothing.
    options = ("--all-namespaces", "--output-threshold=Warning", "--failure-threshold=Warning")
    _, said = run("analyze", *options, *arguments)
    found = [line for line in said.splitlines() if "[IST" in line]
    assert found or "No validation issues found" in said, said
    return [line for line in found if "EnvoyFilter exposes internal" not in line]


@pytest.mark.parametrize("name", OVERLAYS)
def test_objects_fit(run, tmp_path, name):
    """Istio's analysis of its own kinds finds nothing."""
    assert analyze(run, "--use-kube=false", BESIDE, write(tmp_path, name, load(name))) == []


SERVICE = "Service/user-service"
ROUTE = "VirtualService/user-service-gateway"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ((SERVICE, "spec.ports.0.appProtocol", "kubernetes.io/h2c"), PROTOCOL),
        (
            ("VirtualService/user-service", "spec.http.0.retries.perTryTimeout", "8"),
            "missing unit in duration",
        ),
        (("Gateway/user-service", "spec.servers.0.port.protocol", "HTTPZ"), "HTTPZ"),
        (("AuthorizationPolicy/user-service", "spec.rules.0.to.0.operation.ports", ["x"]), "x"),
    ],
)
def test_object_that_is_not_valid(run, tmp_path, change, text):
    """What is wrong with one object is told, so the tests above mean something."""
    code, said = run("validate", "--filename", write(tmp_path, "istio", changed("istio", change).objects))
    assert (code, text in said) == (1, True), said


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ((ROUTE, "spec.gateways.0", "gateway"), "Referenced gateway not found"),
        ((ROUTE, "spec.hosts.0", "users.example.com"), "IST0132"),
        (("VirtualService/user-service", "spec.http.0.route.0.destination.subset", "v1"), "v1"),
    ],
)
def test_objects_that_do_not_fit(run, tmp_path, change, text):
    """So is what is wrong between objects."""
    file = write(tmp_path, "istio", changed("istio", change).objects)
    assert text in "".join(analyze(run, "--use-kube=false", BESIDE, file))


def gateway():
    """Return what Istio's chart and cert-manager have made of the ingress gateway."""
    labels = {"app": "istio-ingress", "istio": "ingress"}
    certificate = trustme.CA().issue_cert("grpc.example.com")
    pem = {
        "tls.crt": b"".join(each.bytes() for each in certificate.cert_chain_pems).decode(),
        "tls.key": certificate.private_key_pem.bytes().decode(),
    }
    pod = {"containers": [{"name": "istio-proxy", "image": "istio/proxyv2"}]}
    service = {"selector": labels, "ports": [{"name": "https", "port": 443}]}
    of_core = {"apiVersion": "v1"}
    return [
        of_core | {"kind": "Pod", "metadata": {"name": "istio-ingress", "labels": labels}, "spec": pod},
        of_core | {"kind": "Service", "metadata": {"name": "istio-ingress"}, "spec": service},
        of_core | {"kind": "Secret", "metadata": {"name": "user-service-gateway-tls"}, "stringData": pem},
    ]


@pytest.fixture(scope="module")
def in_cluster(run):
    """Apply the overlay to an API server; return what analyzes it, with other objects in their place."""
    with running_or_skipped(crds=True) as running:
        running.kubectl("create", "namespace", "istio-ingress")
        command = ("apply", "--server-side", "--filename=-")
        running.kubectl(*command, stdin=yaml.safe_dump_all(load("istio")))
        running.kubectl(*command, "--namespace=istio-ingress", stdin=yaml.safe_dump_all(gateway()))
        running.kubectl("apply", "--server-side", "--namespace=istio-ingress", f"--filename={BESIDE}")
        where = ("--namespace=user-service-trial", "deployment/user-service")
        running.kubectl("rollout", "status", *where, "--timeout=60s")
        yield lambda *files: analyze(run, "--kubeconfig", running.kubeconfig, *files)


def test_objects_fit_in_a_cluster(in_cluster):
    """So it is with Services, pods, Secrets and all that it looks at in a cluster."""
    assert in_cluster() == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("Gateway/user-service", "spec.servers.0.tls.credentialName", "x"), "credentialName not found"),
        (("Gateway/user-service", "spec.selector", {"istio": "x"}), "selector not found"),
        (("Gateway/user-service", "spec.servers.0.port.number", 8443), "not defined in the Service"),
        ((ROUTE, "spec.http.0.route.0.destination.host", "users"), "host not found"),
        (("DestinationRule/user-service", "spec.host", "users"), "does not match any services"),
        (("Telemetry/user-service", "spec.selector.matchLabels", {"app": "x"}), "selector not found"),
        (("AuthorizationPolicy/user-service", "spec.selector.matchLabels", {"app": "x"}), "No matching"),
    ],
)
def test_objects_that_do_not_fit_in_a_cluster(in_cluster, tmp_path, change, text):
    """And a change for the worse is told of."""
    objects = changed("istio", change).objects
    file = write(tmp_path, "changed", [each for each in objects if title(each) == change[0]])
    assert text in "".join(in_cluster(file))
