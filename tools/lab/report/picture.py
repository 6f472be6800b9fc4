"""The report as the README's picture: each strategy's lanes, under the names of what happened."""

from collections.abc import Sequence
from typing import Any

from tools.lab.report.chart import DARK, LIGHT, PATTERNS, STYLE, axis, bands
from tools.lab.report.figures import figures
from tools.lab.report.looks import KEYS
from tools.lab.report.model import Event, Report, Run, parsed
from tools.lab.report.shapes import Shapes, Size
from tools.pages.document import escape, theme

_SIZE = Size(lane=8, gap=2, failed=10)

_MARGIN, _WIDTH, _LEFT, _RIGHT = 8, 840, 236, 8
_ACROSS = _WIDTH - _LEFT - _RIGHT
_BETWEEN = 14
"""Pixels between two runs."""

_LETTER = 6.2
"""Pixels: about what a letter of a title is wide."""

_LINE = 14

_STYLE = f"""
{theme("svg", LIGHT, DARK)} {STYLE}
svg .name {{ font-size: 12.5px; font-weight: 600; }} svg .bad {{ fill: var(--failed); font-weight: 600; }}
svg .titles text {{ paint-order: stroke; stroke: var(--back); stroke-width: 4px; }}
.leader {{ stroke: var(--soft); stroke-width: .5px; }} .paper {{ fill: var(--back); }}
"""


def picture(report: dict[str, Any]) -> str:
    """Return an SVG file that follows the reader's colours.

    Raises:
        ValueError: it is no report.

    """
    known = parsed(report)
    titles, top = _titles(known.events, known.duration)
    rows, bottom = [], top
    for run in known.runs:
        row, height = _row(known, run, bottom)
        rows.append(row)
        bottom += height + _BETWEEN
    height = bottom + 2 * _LINE + 10
    rows.append(_keys(height - _LINE - 4))
    about = ". ".join(f"{run.title}: {', '.join(_words(known, run))}" for run in known.runs)
    box = f"{-_MARGIN} 0 {_WIDTH + _MARGIN} {height}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" '
        f'aria-labelledby="title about"><title id="title">{escape(known.title)}</title>'
        f'<desc id="about">{escape(about)}</desc><style>{_STYLE}</style>{PATTERNS}'
        f'<rect class="paper" x="{-_MARGIN}" width="100%" height="{height}"/>'
        f"{_across(titles + axis(known.duration, bottom), height)}{''.join(rows)}</svg>\n"
    )


def _keys(y: int) -> str:
    x, keys = 0.0, ""
    for text, shape in KEYS.items():
        if text != "p99":  # which the picture does not have
            keys += f'<svg x="{x:.0f}" y="{y}">{shape}<text x="40" y="11">{text}</text></svg>'
            x += 40 + len(text) * _LETTER + 12
    return f"<g>{keys}</g>"


def _across(what: str, height: int, y: int = 0) -> str:
    """Return what is as wide as the time axis."""
    return f'<svg x="{_LEFT}" y="{y}" width="{_ACROSS}" height="{height}">{what}</svg>'


def _titles(events: Sequence[Event], duration: float) -> tuple[str, int]:
    """Return the events' titles above where they were, in as many lines as they need, and their height."""
    ends: list[float] = []
    leaders, titles = "", ""
    for event in events:
        x = (event.at + event.until) / 2 / duration * _ACROSS
        half = len(event.title) * _LETTER / 2
        middle = max(half - _LEFT, min(x, _ACROSS + _RIGHT - half))
        line = next((line for line, end in enumerate(ends) if end <= middle - half), len(ends))
        ends[line : line + 1] = [middle + half + _LETTER]
        leaders += f'<path class="leader" d="M{x:.1f} {-_LINE * line - 6}V0"/>'
        y = -_LINE * line - 8
        titles += f'<text class="middle" x="{middle:.1f}" y="{y}">{escape(event.title)}</text>'
    height = _LINE * len(ends) + 6
    return f'<g class="titles" transform="translate(0 {height})">{leaders}{titles}</g>', height


def _row(report: Report, run: Run, top: int) -> tuple[str, int]:
    shapes = Shapes(run, report.duration, _SIZE)
    events = bands(report.events_of(run), report.duration, 0, shapes.height)
    lines = _words(report, run)
    words = "".join(
        f'<text class="{"bad" if bad else "aside"}" x="0" y="{top + 11 + _LINE * line}">{escape(text)}</text>'
        for line, (text, bad) in enumerate(lines.items(), 1)
    )
    name = f'<text class="name" x="0" y="{top + 11}">{escape(run.title)}</text>'
    row = f"<g>{name}{words}{_across(shapes.svg(0) + events, shapes.height, top)}</g>"
    return row, max(shapes.height, _LINE * (len(lines) + 1))


def _words(report: Report, run: Run) -> dict[str, bool]:
    """Return the figures that make the difference, and whether they are bad."""
    known = {figure.name: figure for figure in figures(report, run)}
    failed = run.figures.failed_planned
    words = {}
    if jain := known.get("jain_steady"):
        words[f"Jain's index {jain.text}"] = False
    if new := known.get("new_pod_seconds"):
        words[f"new pod has its share: {new.text}"] = new.bad
    words[f"failed: {failed:,} planned, {run.figures.failed_unplanned:,} otherwise"] = failed > 0
    if slow := known.get("p99_slow_pod"):
        words[f"p99 with a slow pod {slow.text}"] = False
    return words
