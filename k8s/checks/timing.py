"""Times that depend on each other, in different files, fit together: how a pod starts, lives and ends."""

from collections.abc import Iterator

from grpc_common import ChannelConfig
from grpc_common.config import process_end
from grpc_common.config.durations import parse_duration
from k8s.checks.manifests import Manifest, Manifests, Problem, get
from k8s.checks.servers import Server, servers

_EXIT = round(process_end.BOUND)
"""Seconds that a server may take to exit after its drain."""

_ENDPOINTS = 5
"""Seconds until kube-proxy, DNS and ingresses have heard that a pod goes."""

_PROGRESS = 600
"""Kubernetes' default for progressDeadlineSeconds."""

_AGE_JITTER = 1.1
"""How much later than max_connection_age gRPC ends a connection at most."""


def _until_closed(server: Server) -> float:
    """Return the seconds from the pod's deletion until it takes no new connections."""
    sleep = get(server.container, "lifecycle.preStop.sleep.seconds") or 0
    return float(sleep + server.config.server.drain.delay)


def _until_ended(server: Server) -> float:
    """Return the seconds from the pod's deletion to the end of the drain."""
    return _until_closed(server) + server.config.server.drain.grace


def _until_failed(probe: Manifest) -> float:
    """Return the seconds in which a probe finds a server dead; the defaults are Kubernetes'."""
    return float(probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3))


def take_calls_until_all_have_heard(manifests: Manifests) -> Iterator[Problem]:
    """A pod that goes takes calls until nobody sends it any: by preStop, drain.delay, or both."""
    for server in servers(manifests):
        delay = _until_closed(server)
        if delay < _ENDPOINTS:
            what = f"preStop.sleep + drain.delay is {delay:g} s, and proxies still send it calls"
            yield server.problem("lifecycle.preStop.sleep.seconds", what, f"{_ENDPOINTS} s or more in all")


def end_before_killed(manifests: Manifests) -> Iterator[Problem]:
    """A server has exited before the kubelet kills it."""
    for server in servers(manifests):
        needed = _until_ended(server) + _EXIT
        grace = server.pod.spec.get("terminationGracePeriodSeconds", 30)
        if grace < needed:
            what = f"{grace} s is less than preStop + drain.delay + drain.grace + {_EXIT} s = {needed:g} s"
            fix = f"{needed:g} or more, or shorten those"
            yield server.pod.problem("spec.terminationGracePeriodSeconds", what, fix)


def roll_out_before_the_deadline(manifests: Manifests) -> Iterator[Problem]:
    """A rollout that goes well is not called failed: a pod may start, and with Recreate the old one end."""
    for server in servers(manifests):
        workload = server.pod.workload
        waits = {
            "startupProbe": _until_failed(server.container.get("startupProbe") or {"failureThreshold": 0}),
            "minReadySeconds": float(get(workload, "spec.minReadySeconds") or 0),
        }
        if get(workload, "spec.strategy.type") == "Recreate":
            waits["the old pod's end"] = _until_ended(server) + _EXIT
        deadline = get(workload, "spec.progressDeadlineSeconds") or _PROGRESS
        if workload["kind"] == "Deployment" and deadline <= sum(waits.values()):
            what = f"{deadline} s is not more than {' + '.join(waits)} = {sum(waits.values()):g} s"
            yield Problem(workload, "spec.progressDeadlineSeconds", what, "allow more, and time for an image")


def drain_every_connection(manifests: Manifests) -> Iterator[Problem]:
    """A drain is longer than a connection lives, so that clients that ignore health have left, too."""
    for server in servers(manifests):
        section = server.config.server
        needed = _AGE_JITTER * section.keepalive.max_connection_age
        if section.drain.grace < needed:
            what = (
                f"drain.grace {section.drain.grace:g} s is less than 1.1 x max_connection_age, {needed:g} s"
            )
            yield server.problem("env", what, "make drain.grace longer, or max_connection_age shorter")


def drain_every_stream(manifests: Manifests) -> Iterator[Problem]:
    """A drain is as long as the longest stream: no rollout ends one that the server promises."""
    for server in servers(manifests):
        grace, needed = server.config.server.drain.grace, server.longest_stream
        if grace < needed:
            what = f"drain.grace {grace:g} s cuts streams, which may take {needed:g} s"
            fix = "make it and terminationGracePeriodSeconds longer, or default_stream_deadline shorter"
            yield server.problem("env", what, fix)


def stop_at_pods_that_fail(manifests: Manifests) -> Iterator[Problem]:
    """A rollout waits at each pod until its readiness probe would have found that it fails after all."""
    for server in servers(manifests):
        workload, probe = server.pod.workload, server.container.get("readinessProbe")
        if workload["kind"] != "Deployment" or get(workload, "spec.strategy.type") == "Recreate" or not probe:
            continue
        found, waits = _until_failed(probe), get(workload, "spec.minReadySeconds") or 0
        if waits < found:
            what = f"{waits} s is over before a pod that fails at once is found out, in {found:g} s"
            yield Problem(workload, "spec.minReadySeconds", what, f"{found:g} or more")


def leave_broken_servers_in_time(manifests: Manifests) -> Iterator[Problem]:
    """A server that is not ready is left out before its clients' calls have all run out of time."""
    deadline = ChannelConfig().default_deadline
    for server in servers(manifests):
        if probe := server.container.get("readinessProbe"):
            found = _until_failed(probe) + probe.get("timeoutSeconds", 1)
            if found > deadline:
                what = f"period x threshold + timeout is {found:g} s, clients give up after {deadline:g} s"
                yield server.problem("readinessProbe", what, f"{deadline:g} s or less")


def start_before_killed(manifests: Manifests) -> Iterator[Problem]:
    """A server may wait for its database when it starts."""
    for server in servers(manifests):
        if probe := server.container.get("startupProbe"):
            found, needed = _until_failed(probe), server.config.database.connect_timeout
            if found < needed:
                what = f"period x threshold is {found:g} s, database.connect_timeout is {needed:g} s"
                yield server.problem("startupProbe", what, f"more than {needed:g} s")


def take_clients_pings(manifests: Manifests) -> Iterator[Problem]:
    """A client with grpc_common's defaults does not ping more often than the server allows."""
    time = ChannelConfig().keepalive.time
    for server in servers(manifests):
        allowed = server.config.server.keepalive.min_time
        if time < allowed:
            what = f"keepalive.min_time {allowed:g} s cuts off clients, which ping every {time:g} s"
            yield server.problem("env", what, f"{time:g} s or less")


def take_proxies_pings(manifests: Manifests) -> Iterator[Problem]:
    """Traefik does not ping more often than the server allows; without a readIdleTimeout it never does."""
    field = "spec.forwardingTimeouts.readIdleTimeout"
    for server in servers(manifests):
        allowed = server.config.server.keepalive.min_time
        for transport in manifests.of_kind("ServersTransport"):
            time = parse_duration(str(get(transport, field) or "0s"))
            if 0 < time < allowed:
                what = f"{time:g} s, and a server with keepalive.min_time {allowed:g} s hangs up"
                yield Problem(transport, field, what, f"{allowed:g} s or more")


def let_streams_end(manifests: Manifests) -> Iterator[Problem]:
    """The longest stream may end after its connection is too old, even if it began just before."""
    for server in servers(manifests):
        section = server.config.server
        grace, needed = section.keepalive.max_connection_age_grace, server.longest_stream
        if grace < needed:
            what = f"max_connection_age_grace {grace:g} s cuts streams, which may take {needed:g} s"
            yield server.problem("env", what, "make it default_stream_deadline or more")
