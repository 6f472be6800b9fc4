"""Probes say to the kubelet what it is to do: restart a server, or send it no calls."""

from collections.abc import Iterator

from grpc_common.server.health import LIVENESS, READINESS
from k8s.checks.manifests import Manifests, Problem, get
from k8s.checks.servers import servers

_ASKED = {"startupProbe": LIVENESS, "livenessProbe": LIVENESS, "readinessProbe": READINESS}


def ask_for_what_follows(manifests: Manifests) -> Iterator[Problem]:
    """Only readiness asks for what a server depends on: a lost database restarts no pod."""
    for server in servers(manifests):
        for probe, right in _ASKED.items():
            asked = get(server.container, f"{probe}.grpc.service")
            if asked != right:
                yield server.problem(
                    f"{probe}.grpc.service", f"is {asked or 'missing'}", f"set it to {right}"
                )
