import pytest

from k8s.checks import ports
from k8s.checks.testing import changed, texts

DEPLOYMENT = "Deployment/user-service"
PATH = "spec.template.spec.containers.0"
FIELD = "spec.template.spec.containers[user-service]"


@pytest.mark.parametrize(
    ("rule", "name", "manifest", "path", "port"),
    [
        (ports.target_container_ports, "prod", "Service/user-service", "spec.ports.0.targetPort", "http"),
        (ports.target_container_ports, "prod", "Service/user-service", "spec.ports.0.targetPort", 8080),
        (
            ports.allow_container_ports,
            "prod",
            "NetworkPolicy/user-service",
            "spec.ingress.0.ports.0.port",
            "http",
        ),
        (
            ports.allow_container_ports,
            "prod",
            "NetworkPolicy/user-service-from-prometheus",
            "spec.ingress.0.ports.0.port",
            9091,
        ),
        (
            ports.allow_container_ports,
            "istio",
            "AuthorizationPolicy/user-service",
            "spec.rules.0.to.0.operation.ports.0",
            "8080",
        ),
        (ports.scrape_ports, "prod", "PodMonitor/user-service", "spec.podMetricsEndpoints.0.port", "http"),
    ],
)
def test_port_that_the_pods_have_not(rule, name, manifest, path, port):
    """A name or number that is no container port is told, with those that there are."""
    [text] = texts(rule, changed(name, (manifest, path, port)))
    assert text.startswith(f"{manifest}: spec.")
    assert f": user-service has no container port {port}; take one of " in text
    assert text.endswith("grpc, 50051, metrics, 9090")


def test_port_of_a_mesh_policy():
    """PeerAuthentication has its ports as keys."""
    change = ("PeerAuthentication/user-service", "spec.portLevelMtls", {"9091": {"mode": "PERMISSIVE"}})
    [text] = texts(ports.allow_container_ports, changed("istio", change))
    assert text.startswith("PeerAuthentication/user-service: spec.portLevelMtls: user-service has no")


def test_target_port_left_out():
    """Without targetPort the Service's own port is the container's."""
    change = ("Service/user-service", "spec.ports.0", {"name": "grpc", "port": 443})
    [text] = texts(ports.target_container_ports, changed("prod", change))
    assert text.startswith(
        "Service/user-service: spec.ports[grpc].targetPort: user-service has no container port 443"
    )


def test_service_monitor_of_a_port_that_no_service_has():
    """A ServiceMonitor names the Service's port: the guide's names one that no Service has."""
    labels = {"matchLabels": {"app.kubernetes.io/name": "user-service"}}
    spec = {"selector": labels, "endpoints": [{"port": "metrics"}]}
    manifests = changed(
        "prod",
        ("PodMonitor/user-service", "spec", spec),
        ("PodMonitor/user-service", "kind", "ServiceMonitor"),
    )
    assert [text.partition(";")[0] for text in texts(ports.scrape_ports, manifests)] == [
        f"ServiceMonitor/user-service: spec.endpoints[0].port: Service {name} has no port metrics"
        for name in ("user-service", "user-service-headless")
    ]


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probe_of_another_port(probe):
    """A probe of a port that the container has not would end the pod."""
    manifests = changed("prod", (DEPLOYMENT, f"{PATH}.{probe}.grpc.port", 50053))
    [text] = texts(ports.probe_container_ports, manifests)
    field = f"{FIELD}.{probe}.grpc.port"
    assert (
        text
        == f"{DEPLOYMENT}: {field}: port 50053 is no port of the container; ask one of its containerPorts"
    )


def test_http_probe_by_name():
    """Other probes may name the port."""
    changes = [
        (DEPLOYMENT, f"{PATH}.startupProbe", {"httpGet": {"port": name}}) for name in ("metrics", "web")
    ]
    assert texts(ports.probe_container_ports, changed("prod", changes[0])) == []
    assert len(texts(ports.probe_container_ports, changed("prod", changes[1]))) == 1


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probe_of_a_port_with_tls(probe):
    """The kubelet's gRPC probes speak plaintext: with TLS they ask the health port."""
    manifests = changed("prod", (DEPLOYMENT, f"{PATH}.{probe}.grpc.port", 50051))
    assert texts(ports.probe_in_plaintext, manifests) == [
        f"{DEPLOYMENT}: {FIELD}.{probe}.grpc.port: port 50051 has TLS; set HEALTH_PORT, and probe that"
    ]


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        (
            "GRPC_PORT",
            "50055",
            [
                "containerPort 50051: the server does not listen there; it listens on 9090, 50055",
                "the server listens on 50055 (server.port), no containerPort; add containerPort: 50055",
            ],
        ),
        (
            "METRICS_ENABLED",
            "false",
            ["containerPort 9090: the server does not listen there; it listens on 50051"],
        ),
        (
            "HEALTH_PORT",
            "50052",
            ["the server listens on 50052 (server.health_port), no containerPort; add containerPort: 50052"],
        ),
    ],
)
def test_server_that_listens_elsewhere(variable, value, found):
    """Container ports are those of the configuration in effect, variables included."""
    env = [
        {"name": "CONFIG_FILE", "value": "/etc/user-service/config.yaml"},
        {"name": variable, "value": value},
    ]
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.env", env))
    assert texts(ports.declare_what_is_listened_on, manifests) == [
        f"{DEPLOYMENT}: {FIELD}.ports: {each}" for each in found
    ]


def test_service_monitor_of_a_port_that_is_there():
    """Only the Services that it selects need the port."""
    spec = {
        "selector": {"matchLabels": {"app.kubernetes.io/name": "user-service-postgres"}},
        "endpoints": [{"port": "postgres"}],
    }
    monitor = {
        "kind": "ServiceMonitor",
        "metadata": {"name": "m", "namespace": "user-service"},
        "spec": spec,
    }
    manifests = changed("istio")
    manifests.objects.append(monitor)
    assert texts(ports.scrape_ports, manifests) == []
