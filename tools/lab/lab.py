"""Plays one story for each way in which clients reach pods, and shows what becomes of their calls."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from rich import box
from rich.console import Console
from rich.table import Column, Table

from grpc_common.config.path_argument import PathArgument
from grpc_common.core.errors import StartError
from services.user.testing_postgresql import running_postgresql
from tools.cluster.cluster import ClusterError, running
from tools.lab.fleet.api import SimulatedApi
from tools.lab.run import Apis, Lab
from tools.lab.story import Story, read_story
from tools.lab.strategies import STRATEGIES, Strategy
from tools.pages.output_file import OutputFile, write
from tools.pages.units import readable

_STORIES = Path(__file__).resolve().parent / "stories"
_COLUMNS = ("Jain", "new pod", "failed", "p50", "p99", "p99,\nslow pod")
_NAMES = [strategy.name for strategy in STRATEGIES]


@click.command()
@click.option("--quick", is_flag=True, help="Play the short story: under a minute, in place of five.")
@click.option(
    "--story",
    type=PathArgument(),
    metavar="FILE",
    help="Play a story of your own; stories/full.yaml is an example.",
)
@click.option(
    "--strategy", "names", multiple=True, type=click.Choice(_NAMES), help="Only this; may be given again."
)
@click.option(
    "--cluster", is_flag=True, help="Have a real API server, which tools/cluster/build.sh builds once."
)
@click.option("--json", "json_file", type=OutputFile(), metavar="FILE", help="Write the report for programs.")
@click.option("--html", type=OutputFile(), metavar="FILE", help="Write it as one HTML file.")
@click.option(
    "--picture", "svg", type=OutputFile(), metavar="FILE", help="Draw it small, as the README has it."
)
def main(
    *,
    quick: bool,
    story: Path | None,
    names: Sequence[str],
    cluster: bool,
    json_file: Path | None,
    html: Path | None,
    svg: Path | None,
) -> None:
    """Play one story for each way in which clients reach the pods of a Service, all at the same time.

    Real servers are the pods: each has an address of its own on 127.0.0.2 and up. A DNS server, an API
    server with EndpointSlices and a ClusterIP lead to those that are ready; real clients call them.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the event loop has its own
    if quick and story:
        raise click.UsageError("--quick is a story of ours, --story one of yours; say one of the two")
    title = "your story" if story else "quick" if quick else "full"
    chosen = [each for each in STRATEGIES if not names or each.name in names]
    report = _played(story or _STORIES / f"{title}.yaml", title, chosen, cluster=cluster)
    _summarize(report)
    if json_file:
        write(json_file, json.dumps(report, indent=1, allow_nan=False))
    if html:
        from tools.lab.report.page import page  # noqa: PLC0415 (with all that it needs)

        write(html, page(report))
    if svg:
        from tools.lab.report.picture import picture  # noqa: PLC0415 (the same)

        write(svg, picture(report))


def _played(story: Path, title: str, strategies: Sequence[Strategy], *, cluster: bool) -> dict[str, Any]:
    """Play the story of a file; what is wrong with it, or with this machine, is told in a sentence."""
    try:
        return _play(read_story(story), title, strategies, cluster=cluster)
    except (StartError, ClusterError, RuntimeError, ExceptionGroup) as error:
        raise click.ClickException(str(_first(error))) from None
    except asyncio.CancelledError:  # SIGTERM
        raise click.Abort from None


def _first(error: Exception) -> Exception:
    """Return what is wrong, of several things that were done at once."""
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def _play(story: Story, title: str, strategies: Sequence[Strategy], *, cluster: bool) -> dict[str, Any]:
    try:
        with _apis(real=cluster) as apis, running_postgresql() as database:
            return asyncio.run(Lab(story, strategies, database, apis).play(title))
    except pytest.skip.Exception as reason:
        raise RuntimeError(f"the lab {reason}") from None


@contextmanager
def _apis(*, real: bool) -> Iterator[Apis]:
    if not real:
        yield SimulatedApi.running
        return
    from tools.lab.cluster_api import ClusterApi  # noqa: PLC0415 (with the client of Kubernetes' API)

    with running() as cluster:
        yield partial(ClusterApi.running, cluster)


def _summarize(report: dict[str, Any]) -> None:
    """Print the figures of each run."""
    caption = "failed: in planned events + in others"
    table = Table(
        Column("", no_wrap=True),
        *_COLUMNS,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=caption,
    )
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
        f"{figures['failed_planned']}+{figures['failed_unplanned']}",
        *("" if latency is None else readable(latency) for latency in latencies),
    ]


if __name__ == "__main__":
    main(prog_name="lab")
