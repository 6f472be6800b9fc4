"""Tells how a gRPC target is doing: `python -m grpc_common.commands.doctor kubernetes:///user-service.default:50051`.

Exit codes: 0 healthy and evenly balanced, 1 problems found, 2 wrong usage.
"""

import asyncio
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpc_common.client.resolver.target import parse_target
from grpc_common.commands.diagnosis import DiagnosisError, Endpoint, Policy, Report, examine
from grpc_common.commands.handshake import Handshake
from grpc_common.config.path_argument import PathArgument
from grpc_common.core.errors import printable
from grpc_common.tls.credentials import ClientTLS
from grpc_common.tls.files import TlsError

# Jain's index below which calls are uneven: with 10 endpoints, as when one gets double or half its share.
_EVEN = 0.97

# cert-manager renews when a third of a certificate's life is left, so with less than this it did not.
_RENEWED_LIFE = 0.25

_BAR_WIDTH = 24


@click.command()
@click.argument("target")
@click.option(
    "--tls-directory",
    type=PathArgument(exists=True, file_okay=False),
    help="Use TLS with ca.crt and, to present a certificate, tls.crt and tls.key of this directory.",
)
@click.option("--server-name", help="Use TLS, and expect this name in the servers' certificates.")
@click.option("--service", default="", help="Whose health to check; without it the whole server's.")
@click.option(
    "--policy",
    type=click.Choice(["round_robin", "pick_first"]),
    default="round_robin",
    show_default=True,
    help="How the client balances; pick_first is what gRPC does if nobody says otherwise.",
)
@click.option(
    "--calls", type=click.IntRange(min=1), default=1000, show_default=True, help="Health checks to spread."
)
def command(
    target: str,
    *,
    tls_directory: Path | None,
    server_name: str | None,
    service: str,
    policy: Policy,
    calls: int,
) -> None:
    """Examine the endpoints of TARGET, and how calls spread over them.

    TARGET is what a channel takes: kubernetes:///SERVICE.NAMESPACE:PORT, dns:///NAME:PORT, NAME:PORT,
    ipv4:ADDRESS:PORT[,...], ipv6:[ADDRESS]:PORT[,...] or unix:PATH.

    Exit code: 0 healthy and even, 1 problems found, 2 wrong usage.
    """
    tls = ClientTLS(tls_directory, server_name) if tls_directory or server_name else None
    try:
        parse_target(target)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="TARGET") from None
    try:
        report = asyncio.run(examine(target, tls=tls, service=service, policy=policy, calls=calls))
    except TlsError as error:
        raise click.BadParameter(str(error), param_hint="--tls-directory") from None
    except DiagnosisError as error:
        raise click.ClickException(f"{printable(target)}: {printable(str(error))}") from None
    found = list(problems(report))
    _show(report, found)
    sys.exit(1 if found else 0)


def problems(report: Report) -> Iterator[str]:
    """Say in words what is wrong with endpoints, and why calls do not spread evenly."""
    total = len(report.endpoints)
    for endpoint in report.endpoints:
        yield from _endpoint_problems(endpoint, total, has_tls=report.has_tls)
    if total == 1 and not report.target.startswith(("kubernetes:", "ipv4:", "ipv6:", "unix")):
        yield (
            f"{report.target} resolves to the single address {report.endpoints[0].address}: if that is the "
            "virtual IP of a ClusterIP Service, it balances connections and not calls, so that all calls "
            "of a client go to one pod; use a headless Service (clusterIP: None) with dns:///, or "
            "kubernetes:///SERVICE.NAMESPACE:PORT"
        )
    if total > 1 and report.policy == "pick_first":
        yield (
            f"the policy pick_first sends all calls to one of the {total} endpoints; "
            'give the client the service config {"loadBalancingConfig": [{"round_robin": {}}]}'
        )
    elif report.fairness < _EVEN and all(endpoint.health == "SERVING" for endpoint in report.endpoints):
        yield (
            f"calls are uneven (Jain's index {report.fairness:.2f}) though all endpoints are healthy: "
            "connections may be cut or slow to come; look at the servers' logs"
        )
    if report.failures:
        yield f"{len(report.failures)} calls over one channel failed, the last with {report.failures[-1]}"


def _endpoint_problems(endpoint: Endpoint, total: int, *, has_tls: bool) -> Iterator[str]:
    of_all = f"{endpoint.address}, one endpoint of {total},"
    match endpoint.health:
        case "SERVING":
            pass
        case "UNAVAILABLE" | "DEADLINE_EXCEEDED":
            hint = "; it speaks TLS: give --tls-directory" if endpoint.handshake and not has_tls else ""
            yield f"{of_all} cannot be reached: {endpoint.failure}{hint}"
        case "UNIMPLEMENTED":
            yield f"{of_all} has no grpc.health.v1.Health, so that nobody knows when to avoid it"
        case "NOT_FOUND":
            yield f"{of_all} does not know the service whose health was asked for"
        case "NOT_SERVING" | "UNKNOWN" | "SERVICE_UNKNOWN" if not endpoint.failure:
            yield f"{of_all} is {endpoint.health}: its share goes to the others"
        case _:
            yield f"{of_all} failed its health check: {endpoint.health}: {endpoint.failure}"
    if endpoint.handshake is not None and has_tls:
        yield from _tls_problems(endpoint.address, endpoint.handshake)


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


def _show(report: Report, found: Sequence[str]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # for files and pipes, where nothing wraps
    table = Table("endpoint", "health", *(["TLS"] if report.has_tls else []), box=None, pad_edge=False)
    table.add_column("min / median / p99 ms", justify="right")
    table.add_column(f"calls ({report.policy})")
    most = max(endpoint.calls for endpoint in report.endpoints) or 1
    for endpoint in report.endpoints:
        tls = [_tls_text(endpoint.handshake)] if report.has_tls else []
        bar = "█" * round(_BAR_WIDTH * endpoint.calls / most)
        cells = [
            endpoint.address,
            endpoint.health,
            *tls,
            _times(endpoint.round_trips),
            f"{bar} {endpoint.calls}",
        ]
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells))
    console.print(table)
    console.print(f"\nJain's fairness index: {report.fairness:.3f} (1 is even)")
    for problem in found:
        console.print(Text(f"- {printable(problem)}"))
    if not found:
        console.print("No problems found.")


def _times(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:  # noqa: PLR2004 (what quantiles need)
        return "-"
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[-1]
    return " / ".join(f"{1000 * value:.1f}" for value in (min(seconds), statistics.median(seconds), p99))


def _tls_text(shown: Handshake | None) -> str:
    if shown is None:
        return "-"
    return (
        f"{shown.version}, until {shown.not_after:%Y-%m-%d %H:%M} UTC, {' '.join(shown.names) or 'no names'}"
    )


if __name__ == "__main__":
    command()
