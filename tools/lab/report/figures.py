"""The figures of a run as people read them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tools.lab.report.model import Report, Run
from tools.pages.units import readable

NOTHING = "-"


@dataclass(frozen=True)
class Figure:
    """One figure of a run."""

    name: str
    label: str
    text: str
    bad: bool = False
    """Whether it is what must not be."""


def figures(report: Report, run: Run) -> list[Figure]:
    """Return a run's figures, without those that no run of the report has."""
    runs = [_all(report, each) for each in report.runs]
    shown = {figure.name for each in runs for figure in each if figure.text != NOTHING}
    return [figure for figure in _all(report, run) if figure.name in shown]


def _all(report: Report, run: Run) -> list[Figure]:
    known = run.figures
    jain, opened = known.jain_steady, known.connections_opened
    planned = known.failed_planned
    return [
        Figure("jain_steady", "Jain's index, steady", NOTHING if jain is None else f"{jain:.3f}"),
        _new_pod(report, run),
        Figure("failed_planned", "failed in planned events", f"{planned:,}", bad=planned > 0),
        Figure("failed_unplanned", "failed otherwise", f"{known.failed_unplanned:,}"),
        Figure("p50", "p50", _time(known.p50)),
        Figure("p99", "p99", _time(known.p99)),
        Figure("p99_slow_pod", "p99 with a slow pod", _time(known.p99_slow_pod)),
        Figure("connections_opened", "connections opened", NOTHING if opened is None else f"{opened:,}"),
    ]


def _new_pod(report: Report, run: Run) -> Figure:
    seconds = run.figures.new_pod_seconds
    grew = report.kind == "lab" and any(event.name == "scale-up" for event in report.events_of(run))
    text = _time(seconds) if seconds is not None or not grew else "never"
    return Figure("new_pod_seconds", "until a new pod has its share", text, bad=text == "never")


def _time(seconds: float | None) -> str:
    return NOTHING if seconds is None else readable(seconds)


def causes(report: Report, run: Run, *, planned: bool) -> Mapping[str, int]:
    """Return why calls failed in planned events, or otherwise, and how often.

    In the lab, what fails after an event and before the next is due to it; at first there are only plans.
    On a bad day faults overlap: its phases from the second on are storms, or planned events by their titles.
    """
    plans = {event.name: event.planned for event in report.events_of(run)}
    total: Counter[str] = Counter()
    now = True
    for number, phase in enumerate(run.phases):
        if phase.event is not None or (number and report.kind == "bad-day"):
            now = plans.get(phase.event or phase.title, False)
        if now == planned:
            total.update(phase.failed)
    return dict(total.most_common())
