"""Containers get from their node what they need, and take no more: memory, CPU, and its disk."""

import re
from collections.abc import Iterator
from itertools import product

from k8s.checks.manifests import Manifests, Pod, Problem, get
from k8s.checks.servers import servers

_BOUNDED = ("memory", "ephemeral-storage")
_BOUNDS = ("requests.cpu", *(f"{kind}.{each}" for kind, each in product(("requests", "limits"), _BOUNDED)))

_QUANTITY = re.compile(r"([\d.]+)(m|k|[KMGT]i|[MGT])")

_UNITS = {
    "m": 1e-3,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}

_PROCESS = 120 * 2**20
"""Bytes of a server that is busy with small messages over few connections; memory_test measures them."""

_CONNECTION, _TLS_CONNECTION = 10_000, 75_000
"""Bytes of a connection."""

_LOGS = 50 * 2**20
"""Bytes of a container's log that the kubelet keeps by default: five files of 10 MiB."""


def quantity(text: str | float) -> float:
    """Return the number that Kubernetes' `256Mi`, `100m` or `1e3` stands for.

    Raises:
        ValueError: it is none.

    """
    match = _QUANTITY.fullmatch(str(text))
    return float(match[1]) * _UNITS[match[2]] if match else float(text)


def bound_resources(manifests: Manifests) -> Iterator[Problem]:
    """Each container says what it needs, and the most memory and disk that it takes."""
    for pod in manifests.pods:
        for field, container in pod.containers:
            for bound in _BOUNDS:
                if get(container, f"resources.{bound}") is None:
                    where = f"{field}.resources.{bound}"
                    yield Problem(pod.workload, where, "is missing", "measure it, and set it")


def keep_the_memory_that_is_promised(manifests: Manifests) -> Iterator[Problem]:
    """Each container may use the memory that its node sets aside for it, and no other."""
    for pod in manifests.pods:
        for field, container in pod.containers:
            request, limit = (get(container, f"resources.{kind}.memory") for kind in ("requests", "limits"))
            if request and limit and quantity(request) != quantity(limit):
                what = f"is {request} of the limit {limit}; what is above ends the pod when its node is full"
                yield Problem(pod.workload, f"{field}.resources.requests.memory", what, f"set it to {limit}")


def have_memory_for_what_clients_may_send(manifests: Manifests) -> Iterator[Problem]:
    """As many connections and calls as a server takes, each with the largest message, end no pod."""
    for server in servers(manifests):
        limit, settings = get(server.container, "resources.limits.memory"), server.config.server
        connection = _TLS_CONNECTION if settings.tls.directory else _CONNECTION
        messages = settings.max_concurrent_calls * settings.max_recv_msg_size
        needed = _PROCESS + settings.max_connections * connection + messages
        if limit and quantity(limit) < needed:
            what = (
                f"{limit} is less than max_connections x {connection} bytes "
                f"+ max_concurrent_calls x max_recv_msg_size + {_mebi(_PROCESS)} = {_mebi(needed)}"
            )
            fix = "lower those settings to what the clients need, or raise it"
            yield server.problem("resources.limits.memory", what, fix)


def leave_servers_their_cpu(manifests: Manifests) -> Iterator[Problem]:
    """No server stands still for the rest of each 0.1 s in which it has used up a limit of CPU."""
    for server in servers(manifests):
        if limit := get(server.container, "resources.limits.cpu"):
            what = f"{limit} throttles the server, which the slowest calls feel, also where CPUs are idle"
            fix = "leave it out; the request is its share of a full node"
            yield server.problem("resources.limits.cpu", what, fix)


def store_no_more_than_is_allowed(manifests: Manifests) -> Iterator[Problem]:
    """What a pod may write, logs and volumes, is bounded, and does not have the kubelet end the pod."""
    for pod in manifests.pods:
        yield from _unbounded(pod)
        limits = [get(container, "resources.limits.ephemeral-storage") for _, container in pod.containers]
        if None in limits:
            continue  # which bound_resources tells
        volumes = sum(quantity(size) for _, size in _disk_volumes(pod) if size)
        needed = volumes + _LOGS * len(limits)
        allowed = sum(map(quantity, limits))
        if allowed < needed:
            field, _ = pod.containers[0]
            what = f"all limits are {_mebi(allowed)}, and volumes and logs may take {_mebi(needed)}"
            where = f"{field}.resources.limits.ephemeral-storage"
            yield Problem(pod.workload, where, what, f"{_mebi(needed)} or more in all")


def _unbounded(pod: Pod) -> Iterator[Problem]:
    for field, volume in pod.find("spec.volumes[]"):
        empty = volume.get("emptyDir")
        if empty is not None and not empty.get("sizeLimit"):
            what = "is missing, and the volume may fill the node's disk or the pod's memory"
            yield Problem(pod.workload, f"{field}.emptyDir.sizeLimit", what, "set it")


def _disk_volumes(pod: Pod) -> Iterator[tuple[str, str | None]]:
    for field, empty in pod.find("spec.volumes[].emptyDir"):
        if empty.get("medium") != "Memory":
            yield field, empty.get("sizeLimit")


def _mebi(size: float) -> str:
    return f"{size / 2**20:.0f}Mi"
