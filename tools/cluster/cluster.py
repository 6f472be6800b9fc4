"""Runs a Kubernetes API server on this machine; its nodes and pods are simulated.

etcd, kube-apiserver, kube-controller-manager and kube-scheduler are the real ones, so that objects are
validated, applied, garbage-collected and rolled out as anywhere. KWOK plays the nodes: pods get ready at once
without running anything, or fail where an annotation says so (see pods.yaml).
"""

import hashlib
import json
import os
import re
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import trustme

from tools.ports import held_port
from tools.wrappers import DIES_WITH_US

_HERE = Path(__file__).parent

_STAGES = (
    "node/fast/node-initialize",
    "pod/fast/pod-complete",
    "pod/fast/pod-delete",
    "volume/fast/pv-bind",
    "volume/fast/pv-delete",
    "volume/fast/pvc-delete",
    "volume/fast/pvc-provision",
)
"""What KWOK brings, besides pods.yaml."""

_PATIENCE = 60
"""Seconds until a start has failed; it takes 5 on two idle cores."""

_INTERVAL = 0.05
"""Seconds between two questions whether a program is ready."""


class ClusterError(Exception):
    """A program ended, or kubectl failed; the message has its last words."""


class MissingProgramError(ClusterError):
    """build.sh, crds.sh or control-planes.sh has not run yet; the message says which."""


def programs() -> Path:
    """Return the folder of the programs that build.sh built.

    Raises:
        MissingProgramError: they are not there.

    """
    recipe = _recipe("go.mod", "go.sum", "build.sh")
    version = re.search(r"k8s.io/kubernetes (v\S+)", recipe.decode())
    assert version
    return _made_by("build.sh", f"kubernetes-{version[1]}", recipe)


def crds() -> Path:
    """Return the folder of the CustomResourceDefinitions that crds.sh generated, for `Cluster.add_crds`.

    Raises:
        MissingProgramError: they are not there.

    """
    return _made_by("crds.sh", "crds", _recipe("crds/go.mod", "crds/go.sum", "crds/apis.go", "crds.sh"))


def control_planes() -> Path:
    """Return the folder of istioctl, pilot-discovery, pilot-agent and envoy-gateway.

    It has the agent's envoy_bootstrap.json too.

    Raises:
        MissingProgramError: it is not there.

    """
    files = ("control-planes/go.mod", "control-planes/go.sum", "control-planes.sh")
    return _made_by("control-planes.sh", "control-planes", _recipe(*files))


def _recipe(*files: str) -> bytes:
    return b"".join((_HERE / file).read_bytes() for file in files)


def _made_by(script: str, name: str, recipe: bytes) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grpc-on-kubernetes/bin"
    folder = cache / f"{name}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not folder.is_dir():
        raise MissingProgramError(f"there is no {folder}: run tools/cluster/{script} once (it needs Go)")
    return folder


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs."""

    folder: Path
    """Of its files; `PROGRAM.log` is what a program said."""

    @property
    def kubeconfig(self) -> Path:
        """The file that gives an administrator access; its only context is called `cluster`."""
        return self.folder / "kubeconfig"

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run kubectl against the cluster; return what it printed.

        Raises:
            ClusterError: it failed.

        """
        # As Bazel brings it, or the one on PATH.
        kubectl = os.environ.get("KUBECTL", "kubectl")
        command = [kubectl, "--kubeconfig", self.kubeconfig, "--cache-dir", self.folder / "cache", *arguments]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ClusterError(f"kubectl {' '.join(map(str, arguments))}: {result.stderr.strip()}")
        return result.stdout

    def add_crds(self, folder: Path) -> None:
        """Add the CustomResourceDefinitions in the files of `folder`, and wait until they are served.

        Raises:
            ClusterError: the API server refused one.

        """
        self.kubectl("apply", "--server-side", "--recursive", "--filename", folder)
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", f"--timeout={_PATIENCE}s")


@contextmanager
def running() -> Iterator[Cluster]:
    """Run a cluster on free ports of 127.0.0.1; the block's end, or this process', ends it.

    Raises:
        MissingProgramError: build.sh has not run.
        ClusterError: a program ended, or was not ready in time.

    """
    binaries = programs()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
        start = _Starter(binaries, folder, stack)
        port, nodes_port = (stack.enter_context(held_port()) for _ in range(2))
        authority = _write_credentials(folder, port)
        start("etcd", *_etcd(folder))
        start("kube-apiserver", *_apiserver(folder, port))
        _wait_until_ready(f"https://127.0.0.1:{port}/readyz", authority, start)
        common = [f"--kubeconfig={folder}/kubeconfig", "--secure-port=0", "--leader-elect=false"]
        start("kube-controller-manager", *common, *_controller_manager(folder))
        start("kube-scheduler", *common)
        start("kwok", *_kwok(folder, binaries / "stages", nodes_port))
        cluster = Cluster(folder)
        storage = binaries / "stages/volume/fast/storage-class.yaml"
        cluster.kubectl("apply", "--server-side", f"--filename={_HERE}/nodes.yaml", f"--filename={storage}")
        try:
            cluster.kubectl("wait", "--for=condition=Ready", "nodes", "--all", f"--timeout={_PATIENCE}s")
        except ClusterError:
            start.check()
            raise
        yield cluster


class _Starter:
    """Starts programs, and kills them when `stack` closes: what they know is thrown away."""

    def __init__(self, binaries: Path, folder: Path, stack: ExitStack) -> None:
        self._binaries = binaries
        self._folder = folder
        self._stack = stack
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __call__(self, name: str, *arguments: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                # Not even a killed test leaves anything behind.
                [*DIES_WITH_US, self._binaries / name, *arguments],
                cwd=self._folder,
                env={"KWOK_WORKDIR": str(self._folder), "HOME": str(self._folder)},
                stdout=log,
                stderr=log,
            )
        self._processes[name] = process
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def check(self) -> None:
        """Raise ClusterError if a program has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                self.fail(name, f"ended with code {process.returncode}")

    def fail(self, name: str, what: str) -> None:
        """Raise ClusterError with the last words of a program."""
        lines = (self._folder / f"{name}.log").read_text(errors="replace").splitlines()
        raise ClusterError("\n".join([f"{name} {what}; its last words:", *lines[-10:]]))


def _write_credentials(folder: Path, port: int) -> trustme.CA:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    admin = authority.issue_cert("admin", common_name="admin", organization_name="system:masters")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    for name, certificate in {"server": server, "admin": admin}.items():
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / "kubeconfig").write_text(json.dumps(_kubeconfig(folder, port), indent=2))
    return authority


def _kubeconfig(folder: Path, port: int) -> dict[str, object]:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": f"{folder}/ca.crt"}
    user = {"client-certificate": f"{folder}/admin.crt", "client-key": f"{folder}/admin.key"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "admin", "user": user}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "admin"}}],
        "current-context": "cluster",
    }


def _etcd(folder: Path) -> list[str]:
    return [
        f"--data-dir={folder}/data",
        # Sockets in its working directory need no port, and nobody else can open them.
        "--listen-peer-urls=unix://peers",
        "--listen-client-urls=unix://etcd",
        "--advertise-client-urls=http://localhost:2379",  # must be there, and of this form
        "--unsafe-no-fsync",  # nothing is kept
    ]


def _apiserver(folder: Path, port: int) -> list[str]:
    return [
        "--etcd-servers=unix://etcd",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        "--endpoint-reconciler-type=none",  # an Endpoints object must not have a loopback address
        f"--tls-cert-file={folder}/server.crt",
        f"--tls-private-key-file={folder}/server.key",
        f"--client-ca-file={folder}/ca.crt",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={folder}/server.key",
        f"--service-account-signing-key-file={folder}/server.key",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--kubelet-preferred-address-types=InternalIP",
    ]


def _controller_manager(folder: Path) -> list[str]:
    return [f"--root-ca-file={folder}/ca.crt", f"--service-account-private-key-file={folder}/server.key"]


def _kwok(folder: Path, stages: Path, port: int) -> list[str]:
    log = folder / "pod.log"
    log.write_text("2000-01-01T00:00:00Z stdout F This pod is simulated: nothing runs in it.\n")
    logs = {"logs": [{"logsFile": str(log), "previousLogsFile": str(log)}]}
    config = {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "ClusterLogs", "metadata": {"name": "all"}}
    (folder / "logs.yaml").write_text(json.dumps(config | {"spec": logs}))
    files = [folder / "logs.yaml", _HERE / "pods.yaml", *(stages / f"{name}.yaml" for name in _STAGES)]
    return [
        f"--kubeconfig={folder}/kubeconfig",
        *(f"--config={file}" for file in files),
        "--manage-all-nodes",
        "--node-ip=127.0.0.1",
        f"--node-port={port}",
        f"--server-address=127.0.0.1:{port}",
        f"--tls-cert-file={folder}/server.crt",
        f"--tls-private-key-file={folder}/server.key",
        "--node-lease-duration-seconds=40",  # as kubelet has it
    ]


def _wait_until_ready(url: str, authority: trustme.CA, start: _Starter) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        start.check()
        with suppress(OSError), urllib.request.urlopen(url, timeout=5, context=context):  # noqa: S310
            return
        time.sleep(_INTERVAL)
    start.fail("kube-apiserver", f"was not ready within {_PATIENCE} s")


@click.command(help=__doc__)
@click.option(
    "--crds",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of CustomResourceDefinitions to add.",
)
def main(crds: Path | None) -> None:
    """Run until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt), running() as cluster:
            if crds:
                cluster.add_crds(crds)
            print(f"kubectl --kubeconfig {cluster.kubeconfig} get nodes", flush=True)
            signal.pause()
    except ClusterError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main(prog_name="cluster")
