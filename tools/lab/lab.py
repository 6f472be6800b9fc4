"""Plays one story for each way in which clients reach pods, and shows what becomes of their calls."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from grpc_common.core.errors import StartError
from services.user.testing_postgresql import running_postgresql
from tools.lab.run import Lab
from tools.lab.story import Story, read_story
from tools.lab.strategies import STRATEGIES, Strategy
from tools.pages.units import readable

_STORIES = Path(__file__).resolve().parent / "stories"
_COLUMNS = ("Jain", "new pod", "failed", "p50", "p99", "slow pod's p99")
_NAMES = [strategy.name for strategy in STRATEGIES]


def _file(text: str | None) -> Path | None:
    """Return a file that the user has named; `bazel run` starts programs in a folder of its own."""
    return Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), text) if text else None


@click.command()
@click.option("--quick", is_flag=True, help="Play the short story: under a minute, in place of five.")
@click.option("--story", metavar="FILE", help="Play a story of your own; stories/full.yaml is an example.")
@click.option(
    "--strategy", "names", multiple=True, type=click.Choice(_NAMES), help="Only this; may be given again."
)
@click.option("--html", metavar="FILE", help="Write the report as one HTML file.")
@click.option("--json", "json_file", metavar="FILE", help="Write it as JSON.")
def main(
    *, quick: bool, story: str | None, names: Sequence[str], html: str | None, json_file: str | None
) -> None:
    """Play one story for each way in which clients reach the pods of a Service, all at the same time.

    Real servers are the pods: each has an address of its own on 127.0.0.2 and up. A DNS server, an API
    server with EndpointSlices and a ClusterIP lead to those that are ready; real clients call them.
    """
    try:
        chosen = [each for each in STRATEGIES if not names or each.name in names]
        title = "your story" if story else "quick" if quick else "full"
        told = read_story(_file(story) or _STORIES / f"{title}.yaml")
        report = _play(told, title, chosen)
    except (StartError, RuntimeError, ExceptionGroup) as error:
        raise click.ClickException(str(_first(error))) from None
    except asyncio.CancelledError:  # SIGTERM
        raise click.Abort from None
    _summarize(report)
    if path := _file(json_file):
        path.write_text(json.dumps(report, indent=1))
    if path := _file(html):
        from tools.lab.report.page import page  # noqa: PLC0415 (with all that it needs)

        path.write_text(page(report), "utf-8")


def _first(error: Exception) -> Exception:
    """Return what is wrong, of several things that were done at once."""
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def _play(story: Story, title: str, strategies: Sequence[Strategy]) -> dict[str, Any]:
    try:
        with running_postgresql() as database:
            return asyncio.run(Lab(story, strategies, database).play(title))
    except pytest.skip.Exception as reason:
        raise RuntimeError(f"the lab {reason}") from None


def _summarize(report: dict[str, Any]) -> None:
    """Print the figures of each run."""
    table = Table("", *_COLUMNS, box=box.SIMPLE, caption="failed: in planned events + in others")
    table.columns[0].no_wrap = True
    for run in report["runs"]:
        table.add_row(run["name"], *_row(run["figures"]))
    Console().print(table)
    for each in report["skipped"]:
        click.echo(f"{each['name']} was skipped: {each['why']}")


def _row(figures: dict[str, Any]) -> list[str]:
    even, waited = figures["jain_steady"], figures["new_pod_seconds"]
    latencies = (figures[name] for name in ("p50", "p99", "p99_slow_pod"))
    return [
        "" if even is None else f"{even:.3f}",
        "never" if waited is None else f"{waited:.1f} s",
        f"{figures['failed_planned']} + {figures['failed_unplanned']}",
        *("" if latency is None else readable(latency) for latency in latencies),
    ]


if __name__ == "__main__":
    main()
