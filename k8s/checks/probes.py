"""Probes and hooks say to the kubelet what it is to do: restart a server, or send it no calls."""

from collections.abc import Iterator

from grpc_common.health import LIVENESS, READINESS
from k8s.checks.manifests import Manifests, Problem, get
from k8s.checks.servers import servers

_ASKED = {"startupProbe": LIVENESS, "livenessProbe": LIVENESS, "readinessProbe": READINESS}

_ENDPOINTS = 5
"""Seconds until kube-proxy, DNS and ingresses have heard that a pod goes."""


def ask_for_what_follows(manifests: Manifests) -> Iterator[Problem]:
    """Only readiness asks for what a server depends on: a lost database restarts no pod."""
    for server in servers(manifests):
        for probe, right in _ASKED.items():
            asked = get(server.container, f"{probe}.grpc.service")
            if asked != right:
                yield server.problem(
                    f"{probe}.grpc.service", f"is {asked or 'missing'}", f"set it to {right}"
                )


def take_calls_until_all_have_heard(manifests: Manifests) -> Iterator[Problem]:
    """A pod that goes takes calls until nobody sends it any: by preStop, drain.delay, or both."""
    for server in servers(manifests):
        sleep = get(server.container, "lifecycle.preStop.sleep.seconds") or 0
        delay = sleep + server.config.server.drain.delay
        if delay < _ENDPOINTS:
            what = f"preStop.sleep + drain.delay is {delay:g} s, and proxies still send it calls"
            yield server.problem("lifecycle.preStop.sleep.seconds", what, f"{_ENDPOINTS} s or more in all")
