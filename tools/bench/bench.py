"""What a call costs a server: grpc_common on both engines, bare grpc.aio and others, under several loads.

All servers run, each in a process of its own, and h2load calls one after the other, in rounds. The
figure is CPU time of the server's process, as a multiple of bare grpc.aio's in the same round: it
holds on a machine that does other things as well, where calls a second do not.
"""

import os
import platform
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
import grpc
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from grpc_common.config.path_argument import PathArgument
from tools.bench.loads import LoadError
from tools.bench.measuring import measure
from tools.bench.page import page, readme_chart
from tools.bench.plan import SHORT, WHOLE, Plan
from tools.bench.resting import possible_connections, rested_all
from tools.bench.results import Change, Report, Result, changes
from tools.pages.output_file import OutputFile, write
from tools.pages.units import readable


def _table(results: list[Result]) -> Table:
    table = Table(
        "load",
        Column("server", no_wrap=True),
        *("CPU ratio", "least - most", "CPU", "per second", "p50", "p99", "p99.9", "besides"),
    )
    load = ""
    for r in results:
        if r.load != load:
            table.add_section()
        table.add_row(
            f"{r.series and r.series + ': '}{r.load}" if r.load != load else "",
            r.way,
            f"{r.ratio.median:.2f}",
            f"{r.ratio.least:.2f} - {r.ratio.most:.2f}",
            f"{readable(r.cpu)}/{r.unit}",
            f"{r.rate:,.0f}" if r.rate else "",
            *(readable(r.latencies[name]) if name in r.latencies else "" for name in ("p50", "p99", "p99.9")),
            ", ".join(f"{value:,.1f} {name}" for name, value in r.others.items()),
        )
        load = r.load
    return table


def _compared(compared: list[Change]) -> Table:
    table = Table("load", "server", "CPU ratio then", "now", "a clear change")
    for change in compared:
        old, new = f"{change.old.median:.2f}", f"{change.new.median:.2f}"
        table.add_row(change.load, change.way, old, new, change.verdict)
    return table


def _read(file: Path | None, option: str) -> Report | None:
    try:
        return file and Report.read(file)
    except ValueError as error:
        raise click.BadParameter(f"{file}: {error}", param_hint=option) from error


def _measured(plan: Plan, console: Console) -> Report:
    connections = possible_connections(plan.connections)

    def progress[T](turns: list[T], what: str) -> Iterable[T]:
        return track(turns, console=console, description=what)

    try:
        results, skipped = measure(plan, lambda tasks: progress(tasks, "measuring"))
        ways = [way for way in plan.resting if way.name not in skipped]
        at_rest, refused = rested_all(ways, plan.rests, connections, lambda ways: progress(ways, "at rest"))
    except LoadError as error:
        raise click.ClickException(str(error)) from error
    setting = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "processors": os.process_cpu_count(),
        "grpcio": grpc.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return Report(setting, results + at_rest, skipped | refused)


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="A minute, for a look; the whole takes ten.")
@click.option("--rounds", type=click.IntRange(min=1), help="How often all take their turn.")
@click.option("--seconds", type=click.FloatRange(min=0.05), help="What each turn takes.")
@click.option("--connections", type=click.IntRange(min=1), help="How many idle ones each server gets.")
@click.option(
    "--output",
    type=PathArgument(file_okay=False, writable=True),
    default="bench-report",
    show_default=True,
    help="The folder for report.json and report.html.",
)
@click.option(
    "--compare",
    type=PathArgument(exists=True, dir_okay=False),
    help="The report.json of an earlier run, to compare this one with.",
)
@click.option(
    "--report",
    "measured",
    type=PathArgument(exists=True, dir_okay=False),
    help="The report.json of an earlier run: measure nothing, and show that one.",
)
@click.option("--chart", type=OutputFile(), help="A file for the README's chart, as SVG.")
def main(
    *,
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    connections: int | None,
    output: Path,
    compare: Path | None,
    measured: Path | None,
    chart: Path | None,
) -> None:
    """Measure, print the tables, and write the report."""
    old = _read(compare, "--compare")  # before ten minutes have passed
    report = _read(measured, "--report")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from error
    plan = SHORT if quick else WHOLE
    rounds = rounds or plan.rounds
    plan = replace(
        plan,
        rounds=rounds,
        rests=min(rounds, plan.rests),
        seconds=seconds or plan.seconds,
        connections=connections or plan.connections,
    )
    report = report or _measured(plan, Console(stderr=True))
    compared = changes(old, report) if old else []
    console = Console(width=None if Console().is_terminal else 160)
    console.print(_table(report.results))
    for way, why in report.skipped.items():
        console.print(f"not measured: {way}: {why}", markup=False)
    if old:
        console.print(_compared(compared) if compared else "The older report has nothing that this one has.")
    write(output / "report.json", report.to_json())
    write(output / "report.html", page(report, compared))
    if chart:
        write(chart, readme_chart(report))


if __name__ == "__main__":
    main(prog_name="bench")
