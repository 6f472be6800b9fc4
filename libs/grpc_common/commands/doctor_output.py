"""What the doctor writes: a table for people, or one JSON object for programs."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpc_common.commands.diagnosis import Examined, Report
from grpc_common.commands.handshake import Handshake
from grpc_common.commands.problems import notes
from grpc_common.core.errors import printable

_BAR_WIDTH = 24


def write_table(report: Report, found: Sequence[str]) -> None:
    """Write the report, and the problems that were found, for people."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # for files and pipes, where nothing wraps
    console.print(_table(report))
    numbers = report.numbers
    retries = numbers.retries + numbers.transparent_retries
    age = "" if report.age is None else f"; endpoints confirmed {report.age:.1f} s ago"
    console.print(f"\n{numbers.connections} connections opened, {retries} calls tried again{age}")
    console.print(f"Jain's fairness index: {report.fairness:.3f} (1 is even)")
    for note in notes(report):
        console.print(Text(f"Note: {printable(note)}"))
    for problem in found:
        console.print(Text(f"- {printable(problem)}"))
    if not found:
        console.print("No problems found.")


def _table(report: Report) -> Table:
    zones = any(each.endpoint.zone for each in report.endpoints)
    nodes = any(each.endpoint.node for each in report.endpoints)
    has_tls = report.client.tls is not None
    optional = {"zone": zones, "node": nodes, "state": True, "health": True, "TLS": has_tls}
    names = [name for name, is_shown in optional.items() if is_shown]
    table = Table("endpoint", *names, box=None, pad_edge=False)
    table.add_column("min / median / p99 ms", justify="right")
    table.add_column(f"calls ({report.client.policy})")
    most = max(each.calls for each in report.endpoints) or 1
    for each in report.endpoints:
        of_name = _cells(each)
        bar = "█" * round(_BAR_WIDTH * each.calls / most)
        cells = [
            each.endpoint.address,
            *(of_name[name] for name in names),
            _times(each),
            f"{bar} {each.calls}",
        ]
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells))
    return table


def _cells(each: Examined) -> dict[str, str]:
    return {
        "zone": each.endpoint.zone or "-",
        "node": each.endpoint.node or "-",
        "state": f"{each.state}, terminating" if each.endpoint.terminating else each.state,
        "health": each.health,
        "TLS": _tls_text(each.handshake),
    }


def _times(each: Examined) -> str:
    found = _statistics(each.round_trips)
    return " / ".join(f"{1000 * value:.1f}" for value in found.values()) if found else "-"


def _statistics(seconds: Sequence[float]) -> dict[str, float] | None:
    if len(seconds) < 2:  # noqa: PLR2004 (what quantiles need)
        return None
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[-1]
    return {"min": min(seconds), "median": statistics.median(seconds), "p99": p99}


def _tls_text(shown: Handshake | None) -> str:
    if shown is None:
        return "-"
    return (
        f"{shown.version}, until {shown.not_after:%Y-%m-%d %H:%M} UTC, {' '.join(shown.names) or 'no names'}"
    )


def to_json(report: Report, found: Sequence[str]) -> str:
    """Return the report, and the problems that were found, as a JSON object in one line."""
    numbers, client = report.numbers, report.client
    return json.dumps(
        {
            "target": report.target,
            "policy": client.policy,
            "zone": client.zone,
            "subset": client.subset,
            "tls": client.tls is not None,
            "endpoints": [_endpoint(each) for each in report.endpoints],
            "reason": report.reason,
            "age_seconds": report.age,
            "calls": client.calls,
            "failed_calls": len(report.failures),
            "last_failure": report.failures[-1] if report.failures else "",
            "connections": numbers.connections,
            "retries": {"policy": numbers.retries, "transparent": numbers.transparent_retries},
            "fairness": report.fairness,
            "notes": list(notes(report)),
            "problems": list(found),
        }
    )


def _endpoint(each: Examined) -> dict[str, Any]:
    return {
        "address": each.endpoint.address,
        "zone": each.endpoint.zone,
        "node": each.endpoint.node,
        "terminating": each.endpoint.terminating,
        "weight": each.endpoint.weight,
        "state": each.state,
        "health": each.health,
        "failure": each.failure,
        "tls": _tls(each.handshake),
        "seconds": _statistics(each.round_trips),
        "calls": each.calls,
    }


def _tls(shown: Handshake | None) -> dict[str, Any] | None:
    if shown is None:
        return None
    return {
        "version": shown.version,
        "http2": shown.http2,
        "names": list(shown.names),
        "not_before": shown.not_before.isoformat(),
        "not_after": shown.not_after.isoformat(),
    }
