import pytest

from k8s.checks import servers, unchecked
from k8s.checks.manifests import Manifests
from k8s.checks.rendered import OVERLAYS
from k8s.checks.testing import overlay, texts


def workload(container, kind="Deployment", **spec):
    """Return a workload with one container."""
    template = {
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "a"} | container]} | spec,
    }
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "a"}, "spec": {"template": template}}


def service(**port):
    """Return a Service for it."""
    spec = {"selector": {"app": "a"}, "ports": [{"port": 80} | port]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec}


def unrecognised(*objects):
    """Return what is told not to be a known server."""
    return texts(unchecked.unrecognised_servers, Manifests(objects))


@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"])
@pytest.mark.parametrize(
    "container",
    [
        {"ports": [{"containerPort": 50051}]},
        {"ports": [{"containerPort": 50051, "name": "grpc"}]},
        {"ports": [{"containerPort": 8080, "name": "api"}]},
        {"ports": [{"containerPort": 9000, "name": "grpc"}], "args": ["--config", "/etc/other.yaml"]},
        {"ports": [{"containerPort": 8080, "name": "http"}], "readinessProbe": {"grpc": {"port": 8080}}},
    ],
    ids=str,
)
def test_servers_that_are_not_known(kind, container):
    """What may serve gRPC, and not in grpc_common's way, is named, with what would make it known."""
    [text] = unrecognised(workload(container, kind))
    assert text.startswith(
        f"{kind}/a: spec.template.spec.containers[a]: is no server that is known here, and "
    )
    assert "CONFIG_FILE" in text


@pytest.mark.parametrize(
    "objects",
    [
        [workload({})],
        [workload({"ports": [{"containerPort": 5432, "name": "postgresql"}]})],
        [workload({"ports": [{"containerPort": 6379}]}), service(targetPort=6379, appProtocol="redis")],
        [workload({"ports": [{"containerPort": 80}]}), service(name="http-web")],
        [workload({"ports": [{"containerPort": 53, "protocol": "UDP"}]})],
        [workload({"ports": [{"containerPort": 50051}]}, "Job")],
        [workload({"ports": [{"containerPort": 50051}], "image": "example.com/user-service:1"})],
    ],
    ids=str,
)
def test_what_serves_no_grpc(objects):
    """A port that is named after another protocol, a Job and a known server are passed over."""
    assert unrecognised(*objects) == []


@pytest.mark.parametrize("text", ["receivers: {otlp: {}}", "[1]", "a: [", ""])
def test_other_program_with_a_configuration(text):
    """An option called --config makes no server of ours: what its file says does."""
    container = {
        "args": ["--config=/etc/other/config.yaml"],
        "ports": [{"containerPort": 4317, "name": "otlp"}],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/other"}],
    }
    volumes = [{"name": "config", "configMap": {"name": "other"}}]
    file = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "other"},
        "data": {"config.yaml": text},
    }
    manifests = Manifests([workload(container, volumes=volumes), file])
    assert list(servers.programs(manifests)) == []
    assert len(texts(unchecked.unrecognised_servers, manifests)) == 1


def test_service_to_a_container_without_ports():
    """A container that gets calls on a port that it does not declare may serve gRPC too."""
    assert len(unrecognised(workload({}), service())) == 1


@pytest.mark.parametrize("port", [{"name": "grpc"}, {"name": "grpc-web"}, {"appProtocol": "grpc"}])
def test_service_that_calls_a_port_grpc(port):
    """A port that is called http, and sent gRPC, serves gRPC."""
    container = {"ports": [{"containerPort": 8080, "name": "http"}]}
    assert len(unrecognised(workload(container), service(targetPort="http", **port))) == 1


def test_service_to_one_of_several_containers_without_ports():
    """Either may take the calls, as long as none declares their port."""
    pair = [{"name": "a"}, {"name": "b"}]
    web = [{"name": "a"}, {"name": "b", "ports": [{"containerPort": 80, "name": "http"}]}]
    assert len(unrecognised(workload({}, containers=pair), service())) == 2
    assert unrecognised(workload({}, containers=web), service()) == []
    assert len(unrecognised(workload({}, containers=web), service(targetPort=50051))) == 1


def test_sidecars():
    """What runs beside a server, before it in the list of those that run first, is named."""
    sidecar = {"name": "proxy", "restartPolicy": "Always"}
    [text] = unrecognised(workload({}, initContainers=[sidecar, {"name": "once"}]))
    assert text.startswith("Deployment/a: spec.template.spec.initContainers[proxy]: runs beside the server")


def test_pods_of_other_kinds():
    """A workload of a kind whose pods no rule looks at is named."""
    [text] = texts(unchecked.pods_of_other_kinds, Manifests([workload({}, "ReplicationController")]))
    assert text.startswith("ReplicationController/a: spec.template: no rule looks at its pods")
    template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}, "template": {}}
    [text] = texts(unchecked.pods_of_other_kinds, Manifests([template]))
    assert text.startswith("PodTemplate/a: template: no rule looks at its pods")


@pytest.mark.parametrize(
    ("spec", "annotations", "is_known"),
    [
        ({}, {}, False),
        ({"ingressClassName": "alb"}, {}, False),
        ({"ingressClassName": "nginx-internal"}, {}, True),
        ({}, {"kubernetes.io/ingress.class": "nginx"}, True),
        ({"ingressClassName": "public"}, {"nginx.ingress.kubernetes.io/backend-protocol": "GRPC"}, True),
    ],
)
def test_controllers(spec, annotations, is_known):
    """An Ingress of another controller than ingress-nginx is named."""
    metadata = {"name": "a", "annotations": annotations}
    ingress = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec}
    assert (texts(unchecked.other_controllers, Manifests([ingress])) == []) is is_known


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays(name):
    """Nothing of our overlays is unknown."""
    manifests = overlay(name)
    rules = (unchecked.unrecognised_servers, unchecked.pods_of_other_kinds, unchecked.other_controllers)
    assert [text for rule in rules for text in texts(rule, manifests)] == []
