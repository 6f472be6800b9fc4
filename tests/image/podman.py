"""Containers as the Deployment runs them, by podman on this machine."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

PATIENCE = 60
"""Seconds that a container may take to start or to end, on a busy machine, or emulated."""

LOAD, PUSH = (Path(os.environ[name]).absolute() for name in ("LOAD", "PUSH"))
LOAD_CLIENT = Path(os.environ["LOAD_CLIENT"]).absolute()

# Where setrlimit is refused, as in many containers, podman must not ask for more than there is;
# crun, its other runtime, refuses machines that have both kinds of cgroups.
_CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "host"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
tmp_dir = "{folder}/tmp"
"""

_STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


def missing() -> str:
    """Return what this machine lacks to run containers, or nothing."""
    programs = [program for program in ("podman", "runc") if not shutil.which(program)]
    if programs:
        return f"{' and '.join(programs)} (Debian packages of these names)"
    command = ["unshare", "--mount", "true"]
    mounts = subprocess.run(command, check=False, capture_output=True)
    return "root with CAP_SYS_ADMIN" if mounts.returncode else ""


class Podman:
    """podman with images and containers of its own, in a folder with a short path."""

    def __init__(self, folder: Path) -> None:
        configuration = {"CONTAINERS_CONF": _CONTAINERS_CONF, "CONTAINERS_STORAGE_CONF": _STORAGE_CONF}
        self._environment = os.environ | {"PODMAN_IGNORE_CGROUPSV1_WARNING": "true"}
        for variable, text in configuration.items():
            (folder / variable).write_text(text.format(folder=folder))
            self._environment[variable] = str(folder / variable)

    def __call__(self, *arguments: str | Path) -> str:
        """Run podman and return its output."""
        return self.command("podman", *arguments).stdout.strip()

    def command(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program that calls podman, such as an image's _load target."""
        result = subprocess.run(command, env=self._environment, check=False, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Run podman with pipes to its output."""
        command = ["podman", *arguments]
        return subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Remove all containers, and with the images what is mounted."""
        self("rm", "--all", "--force", "--time=0")
        self("rmi", "--all", "--force")


class Deployment:
    """How the Deployment of a rendered overlay runs its container."""

    def __init__(self, manifests: list[dict[str, Any]]) -> None:
        (deployment,) = (item for item in manifests if item["kind"] == "Deployment")
        (config,) = (item for item in manifests if item["kind"] == "ConfigMap")
        self.config: dict[str, str] = config["data"]
        self.pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
        (self.container,) = self.pod["containers"]

    def user(self) -> int:
        """Return the number of the user."""
        return int(self.pod["securityContext"]["runAsUser"])

    def memory(self) -> int:
        """Return the limit in bytes."""
        limit = self.container["resources"]["limits"]["memory"]
        return int(limit.removesuffix("Mi")) * 2**20

    def flags(self, config: Path) -> list[str]:
        """Return podman's flags for the same; ports are free ones, since the network is the host's."""
        security = self.container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        for name, text in self.config.items():
            (config / name).write_text(text)
        (mount,) = (mount for mount in self.container["volumeMounts"] if mount["name"] == "config")
        values = {item["name"]: item["value"] for item in self.container["env"] if "value" in item}
        values |= {"GRPC_PORT": "0", "METRICS_PORT": "0", "ENGINE": os.environ.get("ENGINE", "auto")}
        return [
            "--read-only",
            "--read-only-tmpfs=false",
            "--security-opt=no-new-privileges",
            *(f"--cap-drop={capability}" for capability in security["capabilities"]["drop"]),
            f"--user={self.user()}:{self.pod['securityContext']['runAsGroup']}",
            f"--memory={self.memory()}",
            f"--memory-swap={self.memory()}",
            f"--volume={config}:{mount['mountPath']}:ro",
            *(f"--env={name}={value}" for name, value in values.items()),
        ]


class Server:
    """A container with the service that has said where it listens."""

    def __init__(self, podman: Podman, name: str, *arguments: str | Path) -> None:
        self._podman, self._name = podman, name
        started = time.monotonic()
        self._process = podman.start("run", "--rm", f"--name={name}", *arguments)
        assert self._process.stderr
        self._log = ""
        while "grpc_port" not in self._log.rpartition("\n")[2]:
            line = self._process.stderr.readline()
            assert line, f"the container ended: {self._log}"
            self._log = f"{self._log}\n{line.removesuffix('\n')}"
        self.seconds_to_serving = time.monotonic() - started
        self.target = f"127.0.0.1:{json.loads(self._log.rpartition('\n')[2])['grpc_port']}"

    @property
    def pid(self) -> int:
        """The process id outside the container."""
        return int(self._podman("inspect", "--format={{.State.Pid}}", self._name))

    def channel(self) -> grpc.Channel:
        """Return a plain channel to the server."""
        return grpc.insecure_channel(self.target)

    def probe(self, service: str) -> str:
        """Ask for the health of a service as Kubernetes does, and return the answer."""
        command = [
            sys.executable,
            "-m",
            "grpc_common.commands.probe",
            "--addr",
            self.target,
            "--service",
            service,
            # A busy machine is no answer.
            "--connect-timeout=20s",
            "--rpc-timeout=20s",
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        return result.stdout + result.stderr

    def terminate(self) -> None:
        """Send SIGTERM, as Kubernetes does."""
        self._podman("kill", "--signal=TERM", self._name)

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the rest of the log."""
        _, log = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, log

    def kill(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._podman("kill", self._name)
            self.wait()


@contextmanager
def serving(podman: Podman, name: str, *arguments: str | Path) -> Iterator[Server]:
    """Run the service in a container that is killed afterwards, if it still runs."""
    server = Server(podman, name, *arguments)
    try:
        yield server
    finally:
        server.kill()
