"""Tells how a gRPC target is doing: `python -m grpc_common.commands.doctor kubernetes:///user-service.default:50051`.

Exit codes: 0 healthy and evenly balanced, 1 problems found, 2 wrong usage.
"""

import asyncio
import logging
import sys
from pathlib import Path

import click
import structlog

from grpc_common.client.resolver.target import parse_target
from grpc_common.commands.diagnosis import Client, Policy, Report, examine
from grpc_common.commands.doctor_output import to_json, write_table
from grpc_common.commands.finding import DiagnosisError
from grpc_common.commands.problems import problems
from grpc_common.config.path_argument import PathArgument
from grpc_common.core.errors import printable
from grpc_common.tls.credentials import ClientTLS
from grpc_common.tls.files import TlsError


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
    type=click.Choice(["least_request", "round_robin", "pick_first"]),
    default="least_request",
    show_default=True,
    help="How the client balances; pick_first is what gRPC does if nobody says otherwise.",
)
@click.option("--zone", default="", help="Prefer the endpoints of this zone, as a client there would.")
@click.option(
    "--subset",
    type=click.IntRange(min=2),
    help="Connect to so many of the endpoints, as a client of this host's name would.",
)
@click.option(
    "--calls", type=click.IntRange(min=1), default=1000, show_default=True, help="Health checks to spread."
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object in place of the table.")
def command(
    target: str,
    *,
    tls_directory: Path | None,
    server_name: str | None,
    service: str,
    policy: Policy,
    zone: str,
    subset: int | None,
    calls: int,
    as_json: bool,
) -> None:
    """Examine the endpoints of TARGET, and how calls spread over them.

    TARGET is what a channel takes: kubernetes:///SERVICE.NAMESPACE:PORT, dns:///NAME:PORT, NAME:PORT,
    ipv4:ADDRESS:PORT[,...], ipv6:[ADDRESS]:PORT[,...] or unix:PATH.

    State is that of the client's connection to an endpoint: ready, connecting, transient_failure, idle,
    ejected, or unused if the client needs none to it. Without an endpoint, and with wrong usage, nothing
    is written to standard output; the reason is on standard error.

    Exit code: 0 healthy and even, 1 problems found, 2 wrong usage.
    """
    # All that the channel would log is in the report, or is one of its problems.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    tls = ClientTLS(tls_directory, server_name) if tls_directory or server_name else None
    report = _examined(target, Client(policy, tls, service, zone, subset, calls))
    found = list(problems(report))
    if as_json:
        click.echo(to_json(report, found))
    else:
        write_table(report, found)
    sys.exit(1 if found else 0)


def _examined(target: str, client: Client) -> Report:
    try:
        parse_target(target)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="TARGET") from None
    try:
        return asyncio.run(examine(target, client))
    except TlsError as error:
        raise click.BadParameter(str(error), param_hint="--tls-directory") from None
    except DiagnosisError as error:
        raise click.ClickException(f"{printable(target)}: {printable(str(error))}") from None


if __name__ == "__main__":
    command()
