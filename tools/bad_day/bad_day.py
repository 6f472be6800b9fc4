"""A bad day: the whole stack under load while a seed decides what fails, and what holds all the same."""

import asyncio
import random
import shlex
import sys
from collections import Counter

import click
import pytest

from tools.bad_day.day import Record, bad_day
from tools.bad_day.invariants import Finding, check
from tools.bad_day.plan import Round, plan

_CAUSES = 12
"""Most of the causes that are told."""


def _show_plan(rounds: list[Round], seed: int) -> None:
    click.echo(f"The plan of seed {seed}:")
    for number, each in enumerate(rounds, 1):
        click.echo(f"round {number}")
        for fault in each.faults:
            click.echo(f"  {fault}")
        click.echo(f"  after the recovery: {each.planned}")


def _show(record: Record, findings: list[Finding]) -> None:
    ledger = record.day.ledger
    click.echo(f"{ledger.made} calls, {len(ledger.failed)} failed; {len(record.happened)} events")
    causes = Counter(f"{made.client}: {made.code}: {made.detail[:100]}" for made in ledger.failed)
    for cause, count in causes.most_common(_CAUSES):
        click.echo(f"  {count:6}  {cause}")
    for finding in findings:
        click.echo(f"{'held  ' if finding.held else 'BROKEN'}  {finding.title}: {finding.detail}")


@click.command(context_settings={"show_default": True})
@click.option("--minutes", default=2.0, type=click.FloatRange(min=0.5), help="How long the day is, about.")
@click.option(
    "--seed", type=int, help="Of the faults; the same has the same plan.  [default: another one each day]"
)
@click.option(
    "--engine",
    default="completion-queue",
    type=click.Choice(["completion-queue", "grpc-aio"]),
    help="What drives the servers' calls.",
)
def main(minutes: float, seed: int | None, engine: str) -> None:
    """Run the stack under load while faults of a seed happen to it.

    The exit code is 1 if an invariant was broken.
    """
    seed = random.randrange(10_000) if seed is None else seed  # noqa: S311 (to be replayed)
    rounds = plan(seed, minutes * 60)
    _show_plan(rounds, seed)
    try:
        record = asyncio.run(bad_day(rounds, seed, engine, click.echo))
    except pytest.skip.Exception as missing:
        raise click.ClickException(str(missing)) from None
    findings = check(record.day)
    _show(record, findings)
    if not all(finding.held for finding in findings):
        options = ["--seed", str(seed), "--minutes", f"{minutes:g}", "--engine", engine]
        click.echo(f"Again: tools/bazel run //tools/bad_day -- {shlex.join(options)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
