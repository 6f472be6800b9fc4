"""A port that is named somewhere is open where the name leads."""

from collections.abc import Iterable, Iterator

from grpc_common import ServerConfig
from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, find, get, metadata
from k8s.checks.servers import servers
from tools.kubernetes.labels import matches

_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def target_container_ports(manifests: Manifests) -> Iterator[Problem]:
    """Each Service's targetPort is a container port of every pod that it selects."""
    for service in manifests.of_kind("Service"):
        for field, port in find(service, "spec.ports[]"):
            for pod in manifests.behind(service):
                yield from _missing(
                    service, f"{field}.targetPort", port.get("targetPort", port["port"]), [pod]
                )


def allow_container_ports(manifests: Manifests) -> Iterator[Problem]:
    """Each port that a NetworkPolicy opens, and that a policy of a mesh is about, is a container port."""
    for policy in manifests.of_kind("NetworkPolicy"):
        pods = manifests.select(get(policy, "spec.podSelector") or {}, metadata(policy, "namespace"))
        for field, port in find(policy, "spec.ingress[].ports[].port"):
            yield from _missing(policy, field, port, pods)
    for policy in manifests.of_kind("AuthorizationPolicy", "PeerAuthentication"):
        pods = manifests.select(get(policy, "spec.selector") or {}, metadata(policy, "namespace"))
        for field, port in find(policy, "spec.rules[].to[].operation.ports[]"):
            yield from _missing(policy, field, int(port), pods)
        for port in get(policy, "spec.portLevelMtls") or {}:
            yield from _missing(policy, "spec.portLevelMtls", int(port), pods)


def scrape_ports(manifests: Manifests) -> Iterator[Problem]:
    """A PodMonitor scrapes a container port by its name, a ServiceMonitor one of a Service."""
    for monitor in manifests.of_kind("PodMonitor"):
        pods = manifests.select(get(monitor, "spec.selector") or {}, metadata(monitor, "namespace"))
        for field, port in find(monitor, "spec.podMetricsEndpoints[].port"):
            yield from _missing(monitor, field, port, pods)
    for monitor in manifests.of_kind("ServiceMonitor"):
        for service in manifests.of_kind("Service"):
            names = [name for _, name in find(service, "spec.ports[].name")]
            if matches(get(monitor, "spec.selector") or {}, get(service, "metadata.labels") or {}):
                for field, port in find(monitor, "spec.endpoints[].port"):
                    if port not in names:
                        what = f"Service {metadata(service, 'name')} has no port {port}"
                        yield Problem(monitor, field, what, f"take one of {', '.join(names)}")


def probe_container_ports(manifests: Manifests) -> Iterator[Problem]:
    """Each probe asks a port of its own container."""
    for pod in manifests.pods:
        for field, container in pod.containers:
            for probe in _PROBES:
                for action in ("grpc", "httpGet", "tcpSocket"):
                    port = get(container, f"{probe}.{action}.port")
                    if port is not None and port not in _names_and_numbers([container]):
                        what = f"port {port} is no port of the container"
                        where = f"{field}.{probe}.{action}.port"
                        yield Problem(pod.workload, where, what, "ask one of its containerPorts")


def declare_what_is_listened_on(manifests: Manifests) -> Iterator[Problem]:
    """The container ports of a server are those that its configuration makes it listen on."""
    for server in servers(manifests):
        field = f"{server.field}.ports"
        declared = {port["containerPort"] for port in server.container.get("ports") or []}
        listening = _listening(server.config)
        for port in declared - listening.keys():
            what = f"containerPort {port}: the server does not listen there"
            fix = f"it listens on {', '.join(map(str, sorted(listening)))}"
            yield Problem(server.pod.workload, field, what, fix)
        for port in listening.keys() - declared:
            what = f"the server listens on {port} ({listening[port]}), no containerPort"
            yield Problem(server.pod.workload, field, what, f"add containerPort: {port}")


def _listening(config: ServerConfig) -> dict[int, str]:
    """Return the ports that a server with this configuration listens on, and the keys that say so."""
    ports = {config.server.port: "server.port"}
    if config.server.health_port:
        ports[config.server.health_port] = "server.health_port"
    if config.metrics.enabled:
        ports[config.metrics.port] = "metrics.port"
    return ports


def probe_in_plaintext(manifests: Manifests) -> Iterator[Problem]:
    """The gRPC probes of a server with TLS ask its health port: the kubelet speaks plaintext only."""
    for server in servers(manifests):
        section = server.config.server
        for probe in _PROBES:
            port = get(server.container, f"{probe}.grpc.port")
            if section.tls.directory and port == section.port:
                where = f"{server.field}.{probe}.grpc.port"
                fix = "set HEALTH_PORT, and probe that"
                yield Problem(server.pod.workload, where, f"port {port} has TLS", fix)


def _missing(manifest: Manifest, field: str, port: str | int, pods: Iterable[Pod]) -> Iterator[Problem]:
    for pod in pods:
        has = _names_and_numbers(container for _, container in pod.containers)
        if port not in has:
            what = f"{metadata(pod.workload, 'name')} has no container port {port}"
            yield Problem(manifest, field, what, f"take one of {', '.join(map(str, has))}")


def _names_and_numbers(containers: Iterable[Manifest]) -> list[str | int]:
    ports = [port for container in containers for port in container.get("ports") or []]
    return [port[key] for port in ports for key in ("name", "containerPort") if key in port]
