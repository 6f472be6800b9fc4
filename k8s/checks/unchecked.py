"""What the rules can't judge, so that nobody takes their silence for a yes."""

from collections.abc import Iterator

from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, annotations, find, get, metadata
from k8s.checks.servers import CONFIG_FILE, programs

_OTHER = {"http", "https", "metrics", "mongo", "mysql", "postgres", "postgresql", "redis"}
"""Protocols that are not gRPC, as the names of ports begin with them."""

_GRPC = {"grpc", "grpcs", "h2c", "kubernetes.io/h2c"}
"""Protocols that are gRPC or carry it, which go before what another name of the port says."""

_NGINX = "nginx.ingress.kubernetes.io/"
_NGINX_CONTROLLER = "k8s.io/ingress-nginx"


def unrecognised_servers(manifests: Manifests) -> Iterator[Problem]:
    """Each container that may serve gRPC, and that no rule about servers looks at."""
    known = {(id(program.pod.workload), program.field) for program in programs(manifests)}
    fix = (
        f"one on grpc_common has {CONFIG_FILE}, --config with its file, or the image user-service; "
        f"name the port of another protocol after it: {', '.join(sorted(_OTHER))}"
    )
    for pod in manifests.pods:
        if pod.workload["kind"] in ("CronJob", "Job"):
            continue
        for field, container in pod.find("spec.containers[]"):
            why = _why_grpc(manifests, pod, container) if (id(pod.workload), field) not in known else None
            if why:
                yield Problem(pod.workload, field, f"is no server that is known here, and {why}", fix)
        for field, container in pod.find("spec.initContainers[]"):
            if container.get("restartPolicy") == "Always":
                what = "runs beside the server, and what it does to calls is not known"
                yield Problem(pod.workload, field, what, "see to it yourself")


def _why_grpc(manifests: Manifests, pod: Pod, container: Manifest) -> str | None:
    """Return what says that a container serves gRPC, or does not say that it serves something else."""
    if any(get(container, f"{probe}.grpc") for probe in ("livenessProbe", "readinessProbe", "startupProbe")):
        return "has a gRPC probe"
    ports = container.get("ports") or []
    for port in ports:
        protocols = set(_protocols(manifests, pod, port))
        if port.get("protocol", "TCP") == "TCP" and (protocols & _GRPC or not protocols & _OTHER):
            return f"may serve gRPC on port {port['containerPort']}"
    if not ports and not all(_is_declared(pod, port) for port in _sent_to(manifests, pod)):
        return "has no port, though a Service sends its pod calls on one that no container has"
    return None


def _sent_to(manifests: Manifests, pod: Pod) -> Iterator[str | int]:
    """Yield where in a pod Services send calls."""
    for service in manifests.services_of(pod):
        for _, each in find(service, "spec.ports[]"):
            yield each.get("targetPort", each["port"])


def _is_declared(pod: Pod, target: str | int) -> bool:
    declared = (port for _, port in pod.find("spec.containers[].ports[]"))
    return any(target in (port.get("name"), port["containerPort"]) for port in declared)


def _protocols(manifests: Manifests, pod: Pod, port: Manifest) -> Iterator[str]:
    """Yield what the names of a port begin with: its own, and those of the Services that lead to it."""
    yield port.get("name", "").partition("-")[0]
    for service in manifests.services_of(pod):
        for _, each in find(service, "spec.ports[]"):
            if each.get("targetPort", each["port"]) in (port.get("name"), port["containerPort"]):
                yield each.get("appProtocol") or each.get("name", "").partition("-")[0]


def pods_of_other_kinds(manifests: Manifests) -> Iterator[Problem]:
    """Each workload whose pods no rule looks at."""
    for kind, field in (("PodTemplate", "template"), ("ReplicationController", "spec.template")):
        for manifest in manifests.of_kind(kind):
            yield Problem(manifest, field, "no rule looks at its pods", "make it a Deployment")


def other_controllers(manifests: Manifests) -> Iterator[Problem]:
    """Each Ingress that another controller than ingress-nginx has."""
    for ingress in manifests.of_kind("Ingress"):
        name = get(ingress, "spec.ingressClassName") or annotations(ingress).get(
            "kubernetes.io/ingress.class"
        )
        found = manifests.named("IngressClass", name, "") if name else None
        is_nginx = get(found, "spec.controller") == _NGINX_CONTROLLER if found else "nginx" in (name or "")
        if not is_nginx and not any(key.startswith(_NGINX) for key in annotations(ingress)):
            what = f"is {name or 'missing'}, and only ingress-nginx is known here"
            yield Problem(ingress, "spec.ingressClassName", what, "see to it yourself")


def twice(manifests: Manifests) -> Iterator[Problem]:
    """Each object that is there more than once: the later would be applied over the earlier."""
    seen = set()
    for manifest in manifests.objects:
        group = manifest["apiVersion"].rpartition("/")[0]
        key = (group, manifest["kind"], metadata(manifest, "namespace"), metadata(manifest, "name"))
        if key in seen:
            yield Problem(manifest, "metadata.name", "is there twice, and either may hold", "leave one out")
        seen.add(key)
