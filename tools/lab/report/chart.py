"""The chart of a run as plain SVG: its shapes, with the story's events across them and the time below."""

import math
from collections.abc import Sequence

from tools.lab.report.model import Event, Report, Run
from tools.lab.report.shapes import DECADES, LEAST_TIME, Shapes, Size, span
from tools.pages.document import escape
from tools.pages.units import readable

LIGHT = "--lane: #e4eaf1; --fair: #0969da; --over: #b36b00; --failed: #cf222e; --slow: #8250df;"
DARK = "--lane: #262e38; --fair: #4493f8; --over: #d29922; --failed: #ff7b72; --slow: #bc8cff;"

STYLE = """
svg { overflow: visible; } svg text { font: 11px system-ui, sans-serif; fill: var(--text); }
svg .aside { fill: var(--soft); } svg .middle { text-anchor: middle; } .lane { fill: var(--lane); }
.fair { fill: var(--fair); } .over { fill: var(--over); } .failure { fill: var(--failed); }
.p99, .grid { fill: none; stroke: var(--slow); vector-effect: non-scaling-stroke; stroke-width: 1.5px; }
.grid { stroke: var(--line); stroke-width: 1px; } .event line { stroke: var(--soft); }
.event rect { fill: var(--text); fill-opacity: .08; } .fault line { stroke-dasharray: 3 2; }
.fault rect { fill: url(#hatched); fill-opacity: 1; } .hatch { stroke: var(--text); stroke-opacity: .2; }
.badge { fill: var(--back); stroke: var(--text); } svg .number { font-size: 9px; text-anchor: middle; }
"""

PATTERNS = (
    '<defs><pattern id="hatched" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><line class="hatch" y2="5"/></pattern></defs>'
)
"""What STYLE refers to; a document needs it once."""

_SIZE = Size(lane=16, gap=3, failed=16, p99=38)
_LEFT, _RIGHT, _BELOW = 44, 6, 16
"""Pixels beside and below the shapes, for words."""

PAGE_STYLE = f"svg.chart {{ margin-left: {_LEFT}px; width: calc(100% - {_LEFT + _RIGHT}px); }}"
"""Of a page with charts."""

_BADGE = 14
_NARROW = 270
"""Pixels across the shapes on a phone of 360, where badges must not overlap."""

_TICKS = (5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_MOST_TICKS = 7


def chart(report: Report, run: Run, name: str, about: str) -> str:
    """Return a chart that is as wide as there is room.

    Args:
        report: which it belongs to.
        run: what it shows.
        name: of the chart among all ids of the page.
        about: what it shows, in words.

    """
    events, duration = report.events_of(run), report.duration
    shapes = Shapes(run, duration, _SIZE)
    marks, top = badges(events, duration)
    bottom = top + shapes.height
    labels = f'aria-labelledby="title-{name} about-{name}"'
    return (
        f'<svg class="chart" role="img" {labels} height="{bottom + _BELOW}">'
        f'<title id="title-{name}">{escape(run.title)}</title><desc id="about-{name}">{escape(about)}</desc>'
        f"{_asides(shapes, top)}{shapes.svg(top)}{bands(events, duration, top, shapes.height)}{marks}"
        f"{axis(duration, bottom + 13)}</svg>"
    )


def _asides(shapes: Shapes, top: int) -> str:
    p99, bottom = top + shapes.p99_top, top + shapes.height
    least, most = (readable(LEAST_TIME * 10**decade) for decade in (0, DECADES))
    words = {
        "pods": top + 12,
        "failed": top + shapes.failed_top + 13,
        most: p99 + 6,
        "p99": (p99 + bottom) / 2 + 4,
        least: bottom + 2,
    }
    return "".join(f'<text class="aside" x="-{_LEFT}" y="{y:g}">{word}</text>' for word, y in words.items())


def badges(events: Sequence[Event], duration: float) -> tuple[str, int]:
    """Return the number of each event where it was, and how many pixels high all of them are."""
    ends: list[float] = []
    shown = ""
    for number, event in enumerate(events, 1):
        at = (event.at + event.until) / 2 / duration
        row = next((row for row, end in enumerate(ends) if end <= at), len(ends))
        ends[row : row + 1] = [at + _BADGE / _NARROW]
        shown += badge(event, number, f"{at:.2%}", _BADGE // 2 + _BADGE * row)
    return shown, _BADGE * len(ends) + 2


def badge(event: Event, number: int, x: str, y: int) -> str:
    """Return an event's number: in a circle if it was planned, in a square if not."""
    what = "planned event" if event.planned else "fault"
    shape = '<circle class="badge" r="6.5"/>'
    if not event.planned:
        shape = '<rect class="badge" x="-6" y="-6" width="12" height="12"/>'
    return (
        f'<svg class="mark" x="{x}" y="{y}">'
        f"<title>{number}: {escape(event.title)}, {what}, {span(event.at, event.until)}</title>"
        f'{shape}<text class="number" y="3">{number}</text></svg>'
    )


def bands(events: Sequence[Event], duration: float, top: int, height: int) -> str:
    """Return what marks when events were: a grey band between lines, hatched and dashed for faults."""
    return "".join(_band(event, duration, top, height) for event in events)


def _band(event: Event, duration: float, top: int, height: int) -> str:
    left, right, width = (
        f"{seconds / duration:.2%}" for seconds in (event.at, event.until, event.until - event.at)
    )
    edges = "".join(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{top + height}"/>' for x in (left, right))
    return (
        f'<g class="event {"planned" if event.planned else "fault"}">'
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}"/>{edges}</g>'
    )


def axis(duration: float, y: int) -> str:
    """Return the times below a chart."""
    hours = math.ceil(duration / 3600 / _MOST_TICKS)
    every = next((step for step in _TICKS if duration / step <= _MOST_TICKS), 3600 * hours)
    ticks = range(0, int(duration * 0.97) + 1, every)  # further right there is no room for a word
    return "".join(
        f'<text class="aside{" middle" if at else ""}" x="{at / duration:.2%}" y="{y}">{_clock(at)}</text>'
        for at in ticks
    )


def _clock(seconds: int) -> str:
    return f"{seconds // 60} min" if seconds and not seconds % 60 else f"{seconds} s"
