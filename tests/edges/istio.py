"""An Istio mesh on this machine: istiod over a real API server, and the proxies that it configures.

Pods are simulated, so two things are not as in a cluster:
    - servers are WorkloadEntries, as machines outside of a cluster are: the API server refuses addresses of
      loopback in an EndpointSlice;
    - no iptables lead calls to proxies: Sidecars say where these listen (interception mode NONE).
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
import yaml

from grpc_common.testing.certificates import CertificateDirectory
from tests.edges.istio_proxy import CLUSTER, SYSTEM, Proxy
from tests.edges.objects import Object
from tests.edges.running import running_program
from tests.interop.envoy_proxy import Envoy
from tools.cluster import cluster
from tools.ports import held_port

PORT = 50051
"""Of the Service and of its pods."""

GATEWAYS = "istio-ingress"
"""The namespace of ingress gateways, and their account."""

_GRPC = {"number": PORT, "protocol": "GRPC", "name": "grpc"}
_POD = {"app.kubernetes.io/name": "user-service"}

_ISTIOD = {
    "POD_NAME": "istiod",
    "POD_NAMESPACE": SYSTEM,
    "CLUSTER_ID": CLUSTER,
    # The API server calls no webhooks here; k8s/checks/istioctl_test.py asks for Istio's own validation.
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
    "PILOT_ENABLE_GATEWAY_API": "false",
    # Envoy as it is published has not these filters of Istio's, which are for telemetry and for HTTP/1.1.
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
}


@dataclass(frozen=True)
class Mesh:
    """A mesh that runs."""

    api: cluster.Cluster
    folder: Path
    authority: trustme.CA
    """Vouches for the identities of the mesh."""

    istiod: str
    """Its address."""

    def apply(self, objects: Sequence[Object]) -> None:
        """Apply objects to the API server.

        Raises:
            ClusterError: it refuses one.

        """
        self.api.kubectl("apply", "--server-side", "--filename=-", stdin=yaml.safe_dump_all(objects))

    def deploy(self, overlay: Sequence[Object]) -> None:
        """Apply what istiod reads of an overlay."""
        kinds = ("Namespace", "Service", "ServiceAccount")
        self.apply([each for each in overlay if each["kind"] in kinds or ".istio.io/" in each["apiVersion"]])

    def add_servers(self, namespace: str, ports: Sequence[int]) -> list[str]:
        """Have the Service lead to servers on `ports` of 127.0.0.1, without sidecars; return where."""
        plain = _POD | {"security.istio.io/tlsMode": "disabled"}
        self.apply([_workload(f"server-{port}", namespace, "127.0.0.1", plain, grpc=port) for port in ports])
        return [f"127.0.0.1:{port}" for port in ports]

    @contextmanager
    def server_sidecar(self, namespace: str, port: int) -> Iterator[str]:
        """Run the sidecar of a server on `port` of 127.0.0.1, to which the Service leads; yield where."""
        address = _free_address()
        ingress = {"port": _GRPC, "bind": address, "defaultEndpoint": f"127.0.0.1:{port}"}
        entry = _workload("server", namespace, address, _POD, grpc=PORT)
        entry["spec"]["serviceAccount"] = "user-service"
        self.apply([entry, _sidecar("server", namespace, _POD, ingress=[ingress])])
        with self._running(Proxy("sidecar", f"{namespace}/user-service", address, _POD), f"{address}:{PORT}"):
            yield f"{address}:{PORT}"

    @contextmanager
    def caller_sidecar(
        self, account: str, callee: str, servers: Sequence[str], identity: Mapping[str, bytes] | None = None
    ) -> Iterator[Envoy]:
        """Run the sidecar of a caller, until it has found the servers.

        Args:
            account: NAMESPACE/NAME of the caller's ServiceAccount.
            callee: the namespace of what it calls.
            servers: their addresses.
            identity: as in `Proxy`.

        """
        address = _free_address()
        labels = {"caller": address}
        egress = {"port": _GRPC, "bind": address, "hosts": [f"{callee}/*"]}
        self.apply([_sidecar(f"caller-{address}", account.partition("/")[0], labels, egress=[egress])])
        proxy = Proxy("sidecar", account, address, labels, identity or {})
        with self._running(proxy, f"{address}:{PORT}", *_found(servers)) as admin:
            yield Envoy(PORT, admin, host=address, clusters="outbound|")

    @contextmanager
    def ingress_gateway(self, name: str, servers: Sequence[str], *filters: str) -> Iterator[Envoy]:
        """Run an ingress gateway, until it has found the servers.

        Args:
            name: the label `istio` of its pods.
            servers: their addresses.
            *filters: what EnvoyFilters have added to it.

        """
        labels, address = {"istio": name}, _free_address()
        added = [("config_dump", each) for each in filters]
        with held_port() as port:
            service = {"selector": labels, "ports": [{"name": "https", "port": 443}]}
            where = {"metadata": {"name": name, "namespace": GATEWAYS}}
            entry = _workload(name, GATEWAYS, address, labels, https=port)
            self.apply([{"apiVersion": "v1", "kind": "Service", "spec": service} | where, entry])
            proxy = Proxy("router", f"{GATEWAYS}/{GATEWAYS}", address, labels)
            with self._running(proxy, f"0.0.0.0:{port}", *_found(servers), *added) as admin:
                yield Envoy(port, admin, clusters="outbound|")

    @contextmanager
    def _running(self, proxy: Proxy, listener: str, *pages: tuple[str, str]) -> Iterator[str]:
        namespace, name = proxy.account.split("/")
        folder = self.folder / f"{namespace}-{name}-{proxy.address}"
        create = ("create", "token", name, f"--namespace={namespace}", "--audience=istio-ca")
        token = self.api.kubectl(*create).strip()
        listening = ("listeners", f"::{listener}\n")
        root = self.folder / "authority/root-cert.pem"
        with proxy.running(folder, self.istiod, root, token, [listening, *pages]) as admin:
            yield admin


def _found(servers: Sequence[str]) -> list[tuple[str, str]]:
    return [("clusters", f"::{server}::") for server in servers]


def _free_address() -> str:
    """Return an address of this machine that nobody has, with a probability of one in millions."""
    return ".".join(["127", *(str(1 + secrets.randbelow(254)) for _ in range(3))])


def _workload(name: str, namespace: str, address: str, labels: dict[str, str], **ports: int) -> Object:
    spec = {"address": address, "labels": labels, "ports": ports}
    return _of_networking("WorkloadEntry", name, namespace, spec)


def _sidecar(name: str, namespace: str, labels: dict[str, str], **sides: Any) -> Object:
    return _of_networking("Sidecar", name, namespace, {"workloadSelector": {"labels": labels}} | sides)


def _of_networking(kind: str, name: str, namespace: str, spec: Object) -> Object:
    where = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": where, "spec": spec}


@contextmanager
def running_mesh(folder: Path, certificate: CertificateDirectory) -> Iterator[Mesh]:
    """Run a mesh.

    Args:
        folder: for files.
        certificate: of the host at the ingress gateways.

    Raises:
        MissingProgramError: build.sh, crds.sh or control-planes.sh has not run.

    """
    definitions = cluster.crds() / "customresourcedefinitions.gen.yaml"
    cluster.control_planes()
    authority = trustme.CA()
    _write_authority(authority, folder / "authority")
    with cluster.running() as api:
        api.add_crds(definitions)
        with _running_istiod(api, folder) as address:
            mesh = Mesh(api, folder, authority, address)
            mesh.apply(_of_gateways(certificate))
            yield mesh


@contextmanager
def _running_istiod(api: cluster.Cluster, folder: Path) -> Iterator[str]:
    """Run istiod; yield its address."""
    (folder / "mesh").write_text("{}")
    (folder / "networks").write_text('{"networks": {}}')
    with ExitStack() as stack:
        secure, plain, http, monitoring = (stack.enter_context(held_port()) for _ in range(4))
        options = {
            "kubeconfig": api.kubeconfig,
            "registries": "Kubernetes",
            "meshConfig": folder / "mesh",
            "networksConfig": folder / "networks",
            "secureGRPCAddr": f"127.0.0.1:{secure}",
            "grpcAddr": f"127.0.0.1:{plain}",
            "httpAddr": f"127.0.0.1:{http}",
            "httpsAddr": "",
            "monitoringAddr": f"127.0.0.1:{monitoring}",
            "ctrlz_port": "0",
        }
        command = [
            cluster.control_planes() / "pilot-discovery",
            "discovery",
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        environment = _ISTIOD | {"ROOT_CA_DIR": str(folder / "authority")}
        program = stack.enter_context(running_program(command, folder / "istiod", environment))
        program.until(f"http://127.0.0.1:{http}/ready")
        yield f"127.0.0.1:{secure}"


def _write_authority(authority: trustme.CA, folder: Path) -> None:
    """Write what istiod signs certificates with, in the files of the Secret `cacerts`."""
    folder.mkdir(parents=True)
    for name in ("ca-cert.pem", "root-cert.pem", "cert-chain.pem"):
        authority.cert_pem.write_to_path(folder / name)
    authority.private_key_pem.write_to_path(folder / "ca-key.pem")


def _of_gateways(certificate: CertificateDirectory) -> list[Object]:
    """Return the namespace of ingress gateways, with what Istio's chart and cert-manager make there."""
    where = {"metadata": {"name": GATEWAYS, "namespace": GATEWAYS}}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "watch", "list"]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": GATEWAYS}
    files = {name: (certificate.path / name).read_text() for name in ("tls.crt", "tls.key")}
    secret = {"name": "user-service-gateway-tls", "namespace": GATEWAYS}
    core = {"apiVersion": "v1"}
    return [
        *(core | {"kind": "Namespace", "metadata": {"name": name}} for name in (SYSTEM, GATEWAYS)),
        core | {"kind": "ServiceAccount"} | where,
        rbac | {"kind": "Role", "rules": [rule]} | where,
        rbac | {"kind": "RoleBinding", "roleRef": role, "subjects": [_SUBJECT]} | where,
        core | {"kind": "Secret", "metadata": secret, "stringData": files},
    ]


_SUBJECT = {"kind": "ServiceAccount", "name": GATEWAYS}
