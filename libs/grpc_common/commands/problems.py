"""Says in words what is wrong with the endpoints of a target."""

from collections.abc import Iterator

from grpc_common.client.resolver.target import DnsTarget, parse_target
from grpc_common.commands.diagnosis import UNUSED, Examined, Report, is_unreachable
from grpc_common.commands.handshake import Handshake

# Jain's index below which calls are uneven: with 10 endpoints, as when one gets double or half its share.
_EVEN = 0.97

# cert-manager renews when a third of a certificate's life is left, so with less than this it did not.
_RENEWED_LIFE = 0.25


def problems(report: Report) -> Iterator[str]:
    """Say in words what is wrong with endpoints, and why calls do not spread evenly."""
    if report.reason:
        yield f"the endpoints may be old: {report.reason}"
    for endpoint in report.endpoints:
        yield from _endpoint_problems(endpoint, report)
    if all(each.endpoint.terminating for each in report.endpoints):
        yield (
            f"all {len(report.endpoints)} endpoints are terminating: they get calls because there is no "
            "other one; new pods are late, or there will be none"
        )
    yield from _balance_problems(report)
    if report.failures:
        yield f"{len(report.failures)} calls over one channel failed, the last with {report.failures[-1]}"


def notes(report: Report) -> Iterator[str]:
    """Say in words what may surprise, but is as it should be."""
    total, used = len(report.endpoints), len(report.used)
    terminating = sum(each.endpoint.terminating for each in report.endpoints)
    if 0 < terminating < total:
        yield f"terminating endpoints get no calls while others serve: {terminating} of {total}"
        total -= terminating
    if report.client.subset and used < total:
        yield f"a subset is in use: this client connects to {used} of {total} endpoints"


def _balance_problems(report: Report) -> Iterator[str]:
    total, policy = len(report.endpoints), report.client.policy
    address = report.endpoints[0].endpoint.address
    if total == 1 and isinstance(parse_target(report.target), DnsTarget) and not address.startswith("dns:"):
        yield (
            f"{report.target} resolves to the single address {address}: if that "
            "is the virtual IP of a ClusterIP Service, it balances connections and not calls, so that all "
            "calls of a client go to one pod; use a headless Service (clusterIP: None) with dns:///, or "
            "kubernetes:///SERVICE.NAMESPACE:PORT"
        )
    if total > 1 and policy == "pick_first":
        yield (
            f"the policy pick_first sends all calls to one of the {total} endpoints; "
            'give the client the service config {"loadBalancingConfig": [{"round_robin": {}}]}'
        )
    elif report.fairness < _EVEN and not report.client.zone and _are_well(report.used):
        reason = "the slower ones get fewer by least_request, or " if policy == "least_request" else ""
        yield (
            f"calls are uneven (Jain's index {report.fairness:.2f}) though all endpoints are healthy: "
            f"{reason}connections may be cut or slow to come; look at the servers' logs"
        )


def _are_well(used: list[Examined]) -> bool:
    return all(each.health == "SERVING" and each.state == "ready" for each in used)


def _endpoint_problems(examined: Examined, report: Report) -> Iterator[str]:
    has_tls = report.client.tls is not None
    address = examined.endpoint.address
    of_all = f"{address}, one endpoint of {len(report.endpoints)},"
    match examined.health:
        case "SERVING":
            yield from _connection_problems(examined, report, of_all)
        case _ if is_unreachable(examined):
            hint = "; it speaks TLS: give --tls-directory" if examined.handshake and not has_tls else ""
            yield f"{of_all} cannot be reached: {examined.failure}{hint}"
        case "UNIMPLEMENTED":
            yield f"{of_all} has no grpc.health.v1.Health, so that nobody knows when to avoid it"
        case "NOT_FOUND":
            yield f"{of_all} does not know the service whose health was asked for"
        case "NOT_SERVING" | "UNKNOWN" | "SERVICE_UNKNOWN" if not examined.failure:
            yield f"{of_all} is {examined.health}: its share goes to the others"
        case _:
            yield f"{of_all} failed its health check: {examined.health}: {examined.failure}"
    if not examined.endpoint.zone and any(each.endpoint.zone for each in report.endpoints):
        yield f"{of_all} is in no zone, though others are: no client has it near; is its node labelled?"
    if examined.handshake is not None and has_tls:
        yield from _tls_problems(address, examined.handshake)


def _connection_problems(examined: Examined, report: Report, of_all: str) -> Iterator[str]:
    """Tell of an endpoint that answers when it is asked alone, but not the channel."""
    if examined.state in ("ready", UNUSED) or report.client.policy == "pick_first":
        return
    if examined.state == "ejected":
        yield f"{of_all} is ejected: too many calls to it failed"
    else:
        yield f"{of_all} is not connected ({examined.state}), though it is SERVING when it is asked alone"


def _tls_problems(address: str, shown: Handshake) -> Iterator[str]:
    until = f"{shown.not_after:%Y-%m-%d %H:%M} UTC"
    if not shown.http2:
        yield f"{address} does not offer HTTP/2 (ALPN h2): is it a proxy for HTTP/1?"
    if shown.life_left <= 0:
        yield f"the certificate of {address} expired at {until}"
    elif shown.life_left < _RENEWED_LIFE:
        yield (
            f"the certificate of {address} expires at {until}, with {shown.life_left:.0%} of its life left: "
            "it should have been renewed"
        )
