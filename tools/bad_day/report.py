"""A day as the report that tools/lab/report shows."""

import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc

from tools.bad_day.clients import DEADLINE, RATE
from tools.bad_day.day import Outcome
from tools.bad_day.invariants import Finding
from tools.bad_day.ledger import Made
from tools.bad_day.record import Record
from tools.bad_day.watching import NAME, Seen
from tools.lab.report.evenness import jain
from tools.pages.percentiles import median_and_p99

_CAUSE = 80
"""Characters of the text of a failed call, by which calls are counted together."""


def report(outcome: Outcome, findings: Sequence[Finding], options: dict[str, Any]) -> dict[str, Any]:
    """Return the report of a day.

    Args:
        outcome: what has happened.
        findings: what became of the invariants.
        options: of the command, which has the same day again; `seed` is one of them.

    """
    setting = options | {
        "Python": platform.python_version(),
        "grpcio": grpc.__version__,
        "cores": os.cpu_count(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "clients": f"kubernetes:///, dns:/// and Envoy, {RATE:g} calls/s each, {DEADLINE:g} s for each call",
    }
    return {
        "version": 1,
        "kind": "bad-day",
        "title": "A bad day",
        "setting": setting,
        "events": [*_events(outcome.record)],
        "runs": [_run(outcome)],
        "skipped": [],
        "seed": options["seed"],
        "invariants": [vars(finding) for finding in findings],
    }


def _events(record: Record) -> Iterator[dict[str, Any]]:
    for each in record.happened:
        yield vars(each) | {"until": each.until if each.until is not None else each.at}


def _run(outcome: Outcome) -> dict[str, Any]:
    record, seen = outcome.record, outcome.seen
    calm = [
        made
        for window in record.day.calm
        for made in record.day.ledger.failed
        if made.within(window.start, window.end)
    ]
    latencies = [seconds for each in seen for seconds in each.clients.latencies]
    phases = [*_phases(record, seen)]
    return {
        "name": NAME,
        "title": "three pods, whatever happens",
        "about": "PostgreSQL with a standby behind PgBouncer, mutual TLS, Envoy, an API server and DNS.",
        "events": None,
        "duration": seen[-1].at,
        "pods": [
            {"name": pod.name, "address": pod.address, "from": times[0], "to": [*times, None][1]}
            for pod, times in outcome.pods.items()
        ],
        "samples": [each.json() for each in seen],
        "phases": phases,
        "figures": {
            "jain_steady": phases[0]["jain"],
            "new_pod_seconds": None,
            "failed_planned": len(calm),
            "failed_unplanned": len(record.day.ledger.failed) - len(calm),
            **median_and_p99(latencies),
            "p99_slow_pod": None,
            "connections_opened": None,
        },
    }


def _phases(record: Record, seen: Sequence[Seen]) -> Iterator[dict[str, Any]]:
    """Yield the steady beginning, and by turns storms with their recoveries and calm times."""
    start = 0.0
    for number, window in enumerate(record.day.calm):
        if number:
            yield _phase(f"storm {number} and recovery", start, window.start, record.day.ledger.failed, seen)
        yield _phase(window.planned, window.start, window.end, record.day.ledger.failed, seen)
        start = window.end


def _phase(
    title: str, start: float, end: float, failed: Sequence[Made], seen: Sequence[Seen]
) -> dict[str, Any]:
    within = [each for each in seen if start < each.at <= end]
    calls: Counter[str] = Counter()
    for each in within:
        calls.update(each.calls)
    latencies = [seconds for each in within for seconds in each.clients.latencies]
    causes = Counter(
        f"{made.client}: {made.code}: {made.detail[:_CAUSE]}" for made in failed if start <= made.began < end
    )
    return {
        "event": None,
        "title": title,
        "from": start,
        "to": end,
        "calls": calls.total(),
        "jain": jain([*calls.values()]) if calls.total() else None,
        **median_and_p99(latencies),
        "failed": dict(causes),
    }
