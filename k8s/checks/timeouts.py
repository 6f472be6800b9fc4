"""No proxy ends a call before its client or the server would: those know what a call may take."""

from collections.abc import Iterator

from grpc_common import ChannelConfig
from grpc_common.config.durations import parse_duration
from k8s.checks.gateways import takers
from k8s.checks.manifests import Manifest, Manifests, Problem, annotations, find, get
from k8s.checks.mesh import istio_routes
from k8s.checks.methods import METHODS, STREAMS
from k8s.checks.servers import servers

_NGINX = "nginx.ingress.kubernetes.io/proxy-{}-timeout"

_NGINX_DEFAULT = "60"
"""Seconds; proxy-read-timeout and proxy-send-timeout of ingress-nginx, if no annotation sets them."""

_ENVOY_DEFAULT = 15
"""Seconds; the timeout of a route of Envoy's that sets none."""


def _needed(manifests: Manifests) -> dict[str, float]:
    """Return the seconds that a call of each method may take, by its path."""
    streams = [server.longest_stream for server in servers(manifests)]
    unary = ChannelConfig().default_deadline
    return {path: max([unary, *streams]) if path in STREAMS else unary for path in METHODS}


def outlast_calls_in_a_mesh(manifests: Manifests) -> Iterator[Problem]:
    """The timeout of each VirtualService's route, and that of a try, is not shorter than its calls."""
    needed = _needed(manifests)
    for service in manifests.of_kind("VirtualService"):
        for path in METHODS:
            for field, rule in istio_routes(service, path):
                # Istio has no timeout of its own; 0s is none too.
                timeout = parse_duration(rule.get("timeout", "0s"))
                if 0 < timeout < needed[path]:
                    yield _too_short(service, f"{field}.timeout", timeout, path, needed[path])
                per_try = parse_duration(get(rule, "retries.perTryTimeout") or "0s")
                if path in STREAMS and 0 < per_try < needed[path]:
                    where = f"{field}.retries.perTryTimeout"
                    yield _too_short(service, where, per_try, path, needed[path])


def leave_time_for_each_try(manifests: Manifests) -> Iterator[Problem]:
    """All tries of a VirtualService's route fit its timeout."""
    for service in manifests.of_kind("VirtualService"):
        for field, rule in find(service, "spec.http[]"):
            tries = 1 + (get(rule, "retries.attempts") or 0)
            needed = tries * parse_duration(get(rule, "retries.perTryTimeout") or "0s")
            timeout = parse_duration(rule.get("timeout", "0s"))
            if timeout and needed >= timeout:
                what = f"{tries} tries take up to {needed:g} s, and the timeout is {timeout:g} s"
                where = f"{field}.retries.perTryTimeout"
                yield Problem(service, where, what, "make it shorter, or the timeout longer")


def outlast_calls_behind_nginx(manifests: Manifests) -> Iterator[Problem]:
    """ingress-nginx waits for the next byte as long as a call of a path may take to send one."""
    needed = _needed(manifests)
    for ingress in manifests.of_kind("Ingress"):
        prefixes = [path.get("path", "") for _, path in find(ingress, "spec.rules[].http.paths[]")]
        paths = [path for path in METHODS if any(path.startswith(prefix) for prefix in prefixes)]
        longest = max(paths, key=lambda path: needed[path], default=None)
        for direction in ("read", "send"):
            key = _NGINX.format(direction)
            where, value = f"metadata.annotations[{key}]", annotations(ingress).get(key, _NGINX_DEFAULT)
            if not value.isdecimal():
                yield Problem(ingress, where, f"{value!r} is no number", "write seconds, without a unit")
            elif longest and int(value) < needed[longest]:
                yield _too_short(ingress, where, int(value), longest, needed[longest])


def outlast_calls_behind_traefik(manifests: Manifests) -> Iterator[Problem]:
    """Traefik waits for the head of a response as long as a call may take; without a value, for ever."""
    needed = max(_needed(manifests).items(), key=lambda item: item[1])
    for transport in manifests.of_kind("ServersTransport"):
        field = "spec.forwardingTimeouts.responseHeaderTimeout"
        timeout = parse_duration(str(get(transport, field) or "0s"))
        if 0 < timeout < needed[1]:
            yield _too_short(transport, field, timeout, *needed)


def outlast_calls_behind_a_gateway(manifests: Manifests) -> Iterator[Problem]:
    """The timeouts that Envoy Gateway's policies give each GRPCRoute are not shorter than its calls."""
    needed = _needed(manifests)
    for path in METHODS:
        for taker in takers(manifests, path):
            timeouts = (get(policy, "spec.timeout.http.requestTimeout") for policy in taker.policies)
            timeout = parse_duration(next(filter(None, timeouts), f"{_ENVOY_DEFAULT}s"))
            if 0 < timeout < needed[path]:
                yield _too_short(taker.route, f"{taker.field} (requestTimeout)", timeout, path, needed[path])
            per_retry = (get(policy, "spec.retry.perRetry.timeout") for policy in taker.policies)
            timeout = parse_duration(next(filter(None, per_retry), "0s"))
            if path in STREAMS and 0 < timeout < needed[path]:
                yield _too_short(
                    taker.route, f"{taker.field} (perRetry.timeout)", timeout, path, needed[path]
                )


def _too_short(manifest: Manifest, field: str, timeout: float, path: str, needed: float) -> Problem:
    what = f"{timeout:g} s ends calls of {path}, which may take {needed:g} s"
    return Problem(manifest, field, what, f"{needed:g} s or more")


def leave_draining_servers_in_time(manifests: Manifests) -> Iterator[Problem]:
    """A server drains for long enough that a proxy's health checks hear of it before its port closes."""
    for policy in manifests.of_kind("BackendTrafficPolicy"):
        check = get(policy, "spec.healthCheck.active")
        if check is None:
            continue
        # Envoy Gateway's defaults.
        interval, threshold = parse_duration(check.get("interval", "3s")), check.get("unhealthyThreshold", 3)
        for server in servers(manifests):
            needed = interval * threshold + 1
            delay = server.config.server.drain.delay
            if delay < needed:
                what = f"finds an unhealthy server in {needed - 1:g} s, drain.delay {delay:g} s ends earlier"
                fix = f"set DRAIN_DELAY to {needed:g} s or more, or check more often"
                yield Problem(policy, "spec.healthCheck.active", what, fix)
