import copy

import pytest

from k8s.checks import schemas
from k8s.checks.manifests import find
from k8s.checks.rendered import OVERLAYS, load

BELOW_OLDEST = [f"1.{minor}" for minor in reversed(range(25, int(schemas.OLDEST.removeprefix("1."))))]

CUSTOM = {
    "cert-manager.io",
    "gateway.envoyproxy.io",
    "gateway.networking.k8s.io",
    "monitoring.coreos.com",
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "traefik.io",
}
"""Groups of custom resources, which cluster_test gives to an API server that has their definitions."""


def core(overlay):
    """Return the objects of an overlay that are not custom resources."""
    return [each for each in load(overlay) if each["apiVersion"].partition("/")[0] not in CUSTOM]


def problems(overlays, version):
    """Return what a version finds wrong with the overlays, each as a line to read and as such."""
    return [
        (f"{overlay}: {problem}", problem)
        for overlay in overlays
        for manifest in core(overlay)
        for problem in schemas.validate(manifest, version)
    ]


@pytest.mark.parametrize("version", [schemas.OLDEST, schemas.NEWEST])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay, version):
    """Every object is valid, and has no unknown field, in the oldest and the newest Kubernetes."""
    found = [text for text, _ in problems([overlay], version)]
    assert not found, "\n".join(["", *found])


def test_what_keeps_from_older_versions():
    """Every field exists since 1.30; before, Kubernetes does not know trafficDistribution."""
    versions = ((version, problems(OVERLAYS, version)) for version in BELOW_OLDEST)
    version, found = next((version, found) for version, found in versions if found)
    text = "\n".join(["", *(text for text, _ in found)])
    assert version == "1.29", text
    assert {problem.field for _, problem in found} == {"spec.trafficDistribution"}, text


@pytest.fixture
def deployment():
    """Return the Deployment of traefik, to be spoilt."""
    [manifest] = [manifest for manifest in core("traefik") if manifest["kind"] == "Deployment"]
    return copy.deepcopy(manifest)


def test_unknown_fields(deployment):
    """Each field that a version does not know is named, with those that it knows there."""
    deployment["spec"]["template"]["spec"] |= {"restartpolicy": "Always", "serviceaccount": "default"}
    first, second = schemas.validate(deployment, schemas.NEWEST)
    assert str(first).startswith(
        "Deployment/user-service: spec.template.spec.restartpolicy: unknown field; "
        f"Kubernetes {schemas.NEWEST} knows here activeDeadlineSeconds, affinity, "
    )
    assert second.field == "spec.template.spec.serviceaccount"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.replicas", "3"),
        ("spec.template.metadata.labels", {"version": 1}),
        ("spec.template.spec.containers[].livenessProbe.grpc.port", "grpc"),
        ("spec.template.spec.containers[].resources.limits.memory", ["512Mi"]),
        ("spec.strategy.rollingUpdate.maxSurge", 1.5),
    ],
)
def test_wrong_types(deployment, path, value):
    """A value of another type than the schema's is refused, with the path where it is."""
    parent, _, name = path.rpartition(".")
    [(_, node)] = find(deployment, parent)
    assert name in node
    node[name] = value
    [problem] = schemas.validate(deployment, schemas.NEWEST)
    assert problem.field.startswith(path.replace("[]", "[0]"))


def test_a_missing_field(deployment):
    """A field that must be there is asked for."""
    del deployment["spec"]["selector"]
    [problem] = schemas.validate(deployment, schemas.NEWEST)
    assert (problem.field, problem.what) == ("spec", "'selector' is a required property")


def test_a_version_that_is_gone(deployment):
    """An API version that Kubernetes no longer serves is refused."""
    budget = deployment | {"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget"}
    [problem] = schemas.validate(budget, schemas.OLDEST)
    assert problem.what == f"Kubernetes {schemas.OLDEST} has no policy/v1beta1 PodDisruptionBudget"


def test_a_group_that_nothing_checks(deployment):
    """A custom resource of a group that is not known is refused, not passed over."""
    [problem] = schemas.validate(deployment | {"apiVersion": "example.com/v1"}, schemas.NEWEST)
    assert problem.what == f"Kubernetes {schemas.NEWEST} has no example.com/v1 Deployment"
