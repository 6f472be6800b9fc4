"""A bad day: the whole stack under load while a seed decides what fails, and what holds all the same."""

import asyncio
import json
import random
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest

from tools.bad_day.day import Outcome, bad_day, duration
from tools.bad_day.invariants import Finding, check
from tools.bad_day.plan import Round, plan
from tools.bad_day.report import report
from tools.bad_day.watching import NAME
from tools.lab.report.live import Live
from tools.lab.report.page import page
from tools.pages.output_file import OutputFile, write

_CAUSES = 12
"""Most of the causes that are told."""

_SHORTEST, _LONGEST = 0.5, 120.0
"""Minutes; the database's small disks have no room for the users of many hours."""

_MOST_SEEDS = 2**32


class _NoDay(click.ClickException):
    """This machine can't have a day, which says nothing about invariants."""

    exit_code = 2


def _show_plan(rounds: list[Round], seed: int) -> None:
    click.echo(f"The plan of seed {seed}:")
    for number, each in enumerate(rounds, 1):
        click.echo(f"round {number}")
        for fault in each.faults:
            click.echo(f"  {fault}")
        click.echo(f"  after the recovery: {each.planned}")


def _show(outcome: Outcome, findings: list[Finding]) -> None:
    ledger = outcome.record.day.ledger
    click.echo(f"\n{ledger.made} calls, {len(ledger.failed)} failed:")
    causes = Counter(f"{made.client}: {made.code}: {made.detail[:100]}" for made in ledger.failed)
    for cause, count in causes.most_common(_CAUSES):
        click.echo(f"  {count:6}  {cause}")
    click.echo("What happened, in seconds:")
    for each in outcome.record.happened:
        click.echo(f"  {each.at:6.1f} to {each.until or each.at:6.1f}  {each.title}")
    for finding in findings:
        click.echo(f"{'held  ' if finding.held else 'BROKEN'}  {finding.title}: {finding.detail}")


def _lived(rounds: list[Round], seed: int, engine: str) -> Outcome:
    try:
        with Live(f"A bad day, seed {seed}", duration(rounds), [NAME]) as live:
            return asyncio.run(bad_day(rounds, seed, engine, live))
    except pytest.skip.Exception as missing:
        raise _NoDay(f"this machine {missing}") from None
    except (RuntimeError, OSError, subprocess.SubprocessError, ExceptionGroup) as error:
        raise _NoDay(str(_first(error))) from None
    except asyncio.CancelledError:  # SIGTERM
        raise click.Abort from None


def _first(error: Exception) -> Exception:
    """Return what is wrong, of several things that were done at once."""
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def _write(data: dict[str, Any], html: Path | None, json_file: Path | None) -> None:
    if json_file:
        write(json_file, json.dumps(data, indent=1, allow_nan=False))
    if html:
        write(html, page(data))


def _minutes(_context: click.Context, _option: click.Parameter, value: float) -> float:
    if not _SHORTEST <= value <= _LONGEST:  # which nan is not either
        raise click.BadParameter(f"{value:g} is not from {_SHORTEST:g} to {_LONGEST:g}.")
    return value


@click.command(context_settings={"show_default": True})
@click.option(
    "--minutes",
    default=2.0,
    callback=_minutes,
    help=f"How long the day is, about; {_SHORTEST:g} to {_LONGEST:g}.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, _MOST_SEEDS - 1),
    help="Of the faults: the same seed has the same plan.  [default: any]",
)
@click.option(
    "--engine",
    default="completion-queue",
    type=click.Choice(["completion-queue", "grpc-aio"]),
    help="What drives the servers' calls.",
)
@click.option("--html", type=OutputFile(), metavar="FILE", help="Where to write a page about the day.")
@click.option("--json", "json_file", type=OutputFile(), metavar="FILE", help="The same for programs.")
def main(minutes: float, seed: int | None, engine: str, html: Path | None, json_file: Path | None) -> None:
    """Run the whole stack under load while faults that a seed decides happen to it.

    The plan is printed first. The exit code is 1 if an invariant was broken, and 2 if this machine could not
    have the day; the same seed has the same plan again.
    """
    seed = random.randrange(10_000) if seed is None else seed  # noqa: S311 (to be replayed)
    rounds = plan(seed, minutes * 60)
    _show_plan(rounds, seed)
    outcome = _lived(rounds, seed, engine)
    findings = check(outcome.record.day)
    _show(outcome, findings)
    options = {"seed": seed, "minutes": minutes, "engine": engine}
    _write(report(outcome, findings, options), html, json_file)
    if not all(finding.held for finding in findings):
        again = shlex.join(f"--{name}={value}" for name, value in options.items())
        click.echo(f"Again: tools/bazel run //tools/bad_day -- {again}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
