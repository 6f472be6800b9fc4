"""Probes say to the kubelet what it is to do: restart a server, or send it no calls."""

from collections.abc import Iterator

from grpc_common.server.health import LIVENESS, READINESS
from k8s.checks.manifests import Manifests, Problem, get
from k8s.checks.servers import servers

_ASKED = {"startupProbe": LIVENESS, "livenessProbe": LIVENESS, "readinessProbe": READINESS}

_PATIENCE = 3
"""Seconds in which a server answers that has little of a CPU, as it has while it starts on a full node."""


def ask_for_what_follows(manifests: Manifests) -> Iterator[Problem]:
    """Only readiness asks for what a server depends on: a lost database restarts no pod."""
    for server in servers(manifests):
        for probe, right in _ASKED.items():
            asked = get(server.container, f"{probe}.grpc.service")
            if asked != right:
                yield server.problem(
                    f"{probe}.grpc.service", f"is {asked or 'missing'}", f"set it to {right}"
                )


def wait_for_an_answer(manifests: Manifests) -> Iterator[Problem]:
    """No probe takes a server for dead that is only slow; Kubernetes' default is one second."""
    for server in servers(manifests):
        for name in _ASKED:
            probe = server.container.get(name)
            if probe and (timeout := probe.get("timeoutSeconds", 1)) < _PATIENCE:
                what = f"{timeout} s is less than a server takes that has little CPU"
                yield server.problem(f"{name}.timeoutSeconds", what, f"{_PATIENCE} or more")
