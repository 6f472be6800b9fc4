"""A report of the lab or of a bad day as a page."""

import shlex
from collections.abc import Iterable
from typing import Any

from tools.lab.report.chart import PATTERNS, badge, chart
from tools.lab.report.figures import NOTHING, Figure, causes, figures
from tools.lab.report.looks import HOW, KEYS, WHOLE_STYLE
from tools.lab.report.model import Event, Report, Run, parsed
from tools.lab.report.shapes import span
from tools.pages.document import aside, document, escape, setting, skipped, table
from tools.pages.units import readable

_PHONE = {"jain_steady", "new_pod_seconds", "failed_planned", "failed_unplanned"}
"""The figures that the summary has room for on a phone; the others are with each run."""


def page(report: dict[str, Any]) -> str:
    """Return the page of a report, which is what its JSON file holds.

    Raises:
        ValueError: it is no such report.

    """
    known = parsed(report)
    first = _summary(known) if known.kind == "lab" else _invariants(known)
    runs = "".join(_run(known, run, number) for number, run in enumerate(known.runs))
    # The few events of a story stay in sight of its many charts; a bad day has many of them, and one chart.
    kept = "all sticky" if known.kind == "lab" else "all"
    body = (
        f'<svg width="0" height="0" style="position: absolute" aria-hidden="true">{PATTERNS}</svg>'
        f"{setting(known.setting)}{first}<h2>How to read the charts</h2><p>{HOW}</p>{_keys()}"
        f'{_events(known.events, kept)}<div class="runs">{runs}</div>'
    )
    reasons = {each.title: each.why for each in known.skipped}
    return document(known.title, WHOLE_STYLE, body + skipped("Not played", reasons))


def _invariants(report: Report) -> str:
    """Return what a bad day has shown, and how to have it again."""
    broken = sum(not each.held for each in report.invariants)
    verdict = f"{broken} of {len(report.invariants)} broken" if broken else "all held"
    rows = "".join(
        f'<tr><td class="held{"" if each.held else " bad"}">{"✓ held" if each.held else "✗ broken"}</td>'
        f"<td>{escape(each.title)}</td><td>{escape(each.detail)}</td></tr>"
        for each in report.invariants
    )
    return (
        f'<section><h2>Invariants: {verdict}</h2><table class="invariants"><tbody>{rows}</tbody></table>'
        f"<p>Seed {report.seed}; the same day again: <code>{escape(_replay(report))}</code></p></section>"
    )


def _replay(report: Report) -> str:
    """Return the command that has the same day again, with those of its options that the setting tells."""
    known = {"seed": report.seed} | report.setting
    options = (f"--{name}={known[name]}" for name in ("seed", "minutes", "engine") if name in known)
    return f"tools/bazel run //tools/bad_day -- {shlex.join(options)}"


def _summary(report: Report) -> str:
    head = "".join(f'<th scope="col"{_desk(f)}>{f.label}</th>' for f in figures(report, report.runs[0]))
    rows = "".join(
        f'<tr><th scope="row"><a href="#run-{number}">{escape(run.title)}</a></th>'
        f"{''.join(f'<td{_desk(f)}>{_value(f)}</td>' for f in figures(report, run))}</tr>"
        for number, run in enumerate(report.runs)
    )
    return (
        '<section><h2>Summary</h2><div class="scrolled"><table class="summary">'
        f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def _desk(figure: Figure) -> str:
    return "" if figure.name in _PHONE else ' class="desk"'


def _value(figure: Figure) -> str:
    return f'<span class="bad">{figure.text}</span>' if figure.bad else figure.text


def _keys() -> str:
    items = "".join(f'<li><svg aria-hidden="true">{shape}</svg>{text}</li>' for text, shape in KEYS.items())
    return f'<ul class="keys">{items}</ul>'


def _events(events: Iterable[Event], name: str) -> str:
    items = (
        f'<li><svg width="14" height="14" aria-hidden="true">{badge(event, number, "7", 7)}</svg>'
        f'{aside(event.title)} <span class="soft">{span(event.at, event.until)}'
        f"{'' if event.planned else ', fault'}</span></li>"
        for number, event in enumerate(events, 1)
    )
    return f'<ol class="events {name}">{"".join(items)}</ol>'


def _run(report: Report, run: Run, number: int) -> str:
    shown = figures(report, run)
    about = f"{run.about} " + ", ".join(f"{f.label}: {f.text}" for f in shown)
    pairs = "".join(
        f'<div data-figure="{f.name}"><dt>{f.label}</dt><dd>{_value(f)}</dd></div>' for f in shown
    )
    own = "" if run.events is None else _events(run.events, "own")
    return (
        f'<section class="run" id="run-{number}" data-run="{escape(run.name)}"><h2>{escape(run.title)}</h2>'
        f'<p class="about soft">{escape(run.about)}</p>{own}{chart(report, run, f"chart-{number}", about)}'
        f"<dl>{pairs}</dl>{_causes(report, run)}{_phases(run)}</section>"
    )


def _causes(report: Report, run: Run) -> str:
    items = [
        f"<li>{count:,} failed {when}: {aside(cause)}</li>"
        for when, planned in (("in planned events", True), ("otherwise", False))
        for cause, count in causes(report, run, planned=planned).items()
    ]
    return f'<ul class="causes">{"".join(items)}</ul>' if items else ""


def _phases(run: Run) -> str:
    head = ["phase", "when", "calls", "Jain's index", "p50", "p99", "failed"]
    rows = [
        [
            phase.title,
            span(phase.start, phase.end),
            f"{phase.calls:,}",
            NOTHING if phase.jain is None else f"{phase.jain:.3f}",
            *(NOTHING if time is None else readable(time) for time in (phase.p50, phase.p99)),
            ", ".join(f"{count:,} {cause}" for cause, count in phase.failed.items()) or "0",
        ]
        for phase in run.phases
    ]
    return f"<details><summary>Phase by phase</summary>{table(head, rows)}</details>"
