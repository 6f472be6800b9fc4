"""Proxies speak to a server as it listens: TLS where it has a certificate, plaintext where it has none."""

from collections.abc import Iterator

from k8s.checks.backends import Backend, backends, leading_to
from k8s.checks.manifests import Manifest, Manifests, Problem, annotations, find, get
from k8s.checks.servers import servers

_NGINX = "nginx.ingress.kubernetes.io/backend-protocol"


def speak_as_servers_listen(manifests: Manifests) -> Iterator[Problem]:
    """Routes of Traefik, nginx and Gateway API encrypt if, and only if, the server behind does."""
    for server in servers(manifests):
        tls = server.config.server.tls.directory is not None
        for service in manifests.services_of(server.pod):
            yield from _service(service, tls=tls)
        for backend in leading_to(manifests, server.pod):
            yield from _traefik(backend, tls=tls)
            yield from _nginx(backend.manifest, tls=tls)
            yield from _gateway(manifests, backend, tls=tls)


def _service(service: Manifest, *, tls: bool) -> Iterator[Problem]:
    """What meshes and gateways that are told nothing else go by."""
    right, wrong = ("https", "kubernetes.io/h2c") if tls else ("kubernetes.io/h2c", "https")
    for field, protocol in find(service, "spec.ports[].appProtocol"):
        if protocol == wrong:
            yield Problem(service, field, f"is {wrong}, the server {_speaks(tls=tls)}", f"set it to {right}")


def _traefik(backend: Backend, *, tls: bool) -> Iterator[Problem]:
    right = "https" if tls else "h2c"
    if backend.manifest["kind"] == "IngressRoute" and backend.reference.get("scheme") != right:
        what = f"is {backend.reference.get('scheme')}, the server {_speaks(tls=tls)}"
        yield Problem(backend.manifest, f"{backend.field}.scheme", what, f"set it to {right}")


def _nginx(ingress: Manifest, *, tls: bool) -> Iterator[Problem]:
    right = "GRPCS" if tls else "GRPC"
    if ingress["kind"] == "Ingress" and annotations(ingress).get(_NGINX) != right:
        what = f"is {annotations(ingress).get(_NGINX)}, the server {_speaks(tls=tls)}"
        yield Problem(ingress, f"metadata.annotations[{_NGINX}]", what, f"set it to {right}")


def _gateway(manifests: Manifests, backend: Backend, *, tls: bool) -> Iterator[Problem]:
    policies = manifests.of_kind("BackendTLSPolicy")
    encrypted = [name for policy in policies for _, name in find(policy, "spec.targetRefs[].name")]
    if backend.manifest["kind"] in ("GRPCRoute", "HTTPRoute") and (backend.service in encrypted) != tls:
        what = f"has {'no' if tls else 'a'} BackendTLSPolicy, the server {_speaks(tls=tls)}"
        fix = "add one with the server's name and authority" if tls else "leave it out"
        yield Problem(backend.manifest, backend.field, what, fix)


def _speaks(*, tls: bool) -> str:
    return "has TLS" if tls else "speaks plaintext HTTP/2"


def expect_a_name(manifests: Manifests) -> Iterator[Problem]:
    """Traefik checks the name in the server's certificate: it dials addresses, which are in none."""
    for backend in backends(manifests):
        if backend.reference.get("scheme") != "https":
            continue
        name = backend.reference.get("serversTransport", "")
        transport = manifests.named("ServersTransport", name, backend.namespace)
        if transport is None:
            what, fix = (
                "has no ServersTransport, so an address is checked",
                "name one with serverName and rootCAs",
            )
            yield Problem(backend.manifest, backend.field, what, fix)
            continue
        if not get(transport, "spec.serverName"):
            fix = f"set it to a name of the certificate, such as {backend.service}"
            yield Problem(transport, "spec.serverName", "is missing, so an address is checked", fix)
        if get(transport, "spec.insecureSkipVerify"):
            what, fix = "accepts whoever answers", "leave it out, and name the authority in rootCAs"
            yield Problem(transport, "spec.insecureSkipVerify", what, fix)
