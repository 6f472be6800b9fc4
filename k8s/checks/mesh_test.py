import pytest

from k8s.checks.mesh import name_grpc_as_such
from k8s.checks.testing import REMOVED, changed, configured, texts

INJECT = ("Deployment/user-service", "spec.template.metadata.labels[sidecar.istio.io/inject]")


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
