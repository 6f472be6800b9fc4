import subprocess

import pytest
import yaml

from k8s.checks.rendered import OVERLAYS, load
from k8s.checks.testing import changed
from tools.cluster import cluster

BESIDE = "k8s/components/istio-gateway/beside-gateway.yaml"
IN_MESH = [name for name in OVERLAYS if any(".istio.io/" in each["apiVersion"] for each in load(name))]
PROTOCOL = "doesn't follow Istio protocol selection"


@pytest.fixture(scope="module")
def run():
    """Return what runs istioctl, and returns its exit code and all that it says."""
    try:
        program = cluster.istioctl()
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


def analyze(run, *files):
    """Analyze files, in all namespaces: else it is of objects in "default", where there are none."""
    return run("analyze", "--use-kube=false", "--all-namespaces", BESIDE, *files)


def messages(said):
    """Return the messages of an analysis, but for the one that every EnvoyFilter gets: that it is one."""
    return [
        line for line in said.splitlines() if "[IST" in line and "EnvoyFilter exposes internal" not in line
    ]


@pytest.mark.parametrize("name", OVERLAYS)
def test_objects_fit(run, tmp_path, name):
    """Istio's analysis of all objects together finds nothing."""
    code, said = analyze(run, write(tmp_path, name, load(name)))
    assert (code, messages(said)) == (0, []), said


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
    _, said = analyze(run, write(tmp_path, "istio", changed("istio", change).objects))
    assert text in "".join(messages(said)), said
