"""A dashboard's panels as one SVG: lines over time, as Grafana's time series have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, COLUMNS = 960, 3
_CELL, _ROW = WIDTH // COLUMNS, 190
_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT = 52, 26, _CELL - 64, 106
_LEGEND_WIDTH = 46
"""Characters of a line of the legend."""

_LIGHT = ("#1f2328", "#ffffff", "#d1d9e0", "#0969da", "#bf8700", "#1a7f37", "#cf222e", "#8250df", "#59636e")
_DARK = ("#f0f6fc", "#0d1117", "#3d444d", "#4493f8", "#d29922", "#3fb950", "#f85149", "#ab7df8", "#9198a1")
_COLORS = 6

type Line = Sequence[tuple[float, float]]
"""Seconds from the beginning, and values; a line ends where more than a step is missing."""


@dataclass(frozen=True)
class Panel:
    """What one panel shows."""

    title: str
    unit: str
    lines: Mapping[str, Line]
    """By what the legend calls them."""


def draw(panels: Sequence[Panel], seconds: float, step: float, band: tuple[float, float]) -> str:
    """Return the SVG of panels over `seconds`; behind all of them is a band from one second to another."""
    height = _ROW * -(-len(panels) // COLUMNS)
    cells = "".join(_cell(panel, number, seconds, step, band) for number, panel in enumerate(panels))
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>The dashboard through an incident</title><style>{_style()}</style>{cells}</svg>\n"
    )


def _style() -> str:
    light, dark = (
        " ".join(f"--{name}: {color};" for name, color in zip(_names(), colors, strict=True))
        for colors in (_LIGHT, _DARK)
    )
    strokes = " ".join(
        f".c{n} {{ stroke: var(--c{n}); }} .t{n} {{ fill: var(--c{n}); }}" for n in range(_COLORS)
    )
    return (
        f"svg {{ background: var(--back); {light} }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }} "
        "text { font: 10px system-ui, sans-serif; fill: var(--text); } "
        ".title { font-size: 12px; font-weight: 600; } "
        ".axis { text-anchor: end; } path { fill: none; stroke-width: 1.4; } "
        f".grid {{ stroke: var(--line); stroke-width: 1; }} .band {{ fill: var(--line); opacity: .5; }} "
        f"{strokes}"
    )


def _names() -> list[str]:
    return ["text", "back", "line", *(f"c{number}" for number in range(_COLORS))]


def _cell(panel: Panel, number: int, seconds: float, step: float, band: tuple[float, float]) -> str:
    x, y = number % COLUMNS * _CELL, number // COLUMNS * _ROW
    most = max((value for line in panel.lines.values() for _, value in line), default=0) or 1
    across, down = _PLOT_WIDTH / seconds, _PLOT_HEIGHT / most / 1.05
    left, right = (_LEFT + at * across for at in band)
    bottom = _TOP + _PLOT_HEIGHT
    paths = "".join(
        f'<path class="c{index % _COLORS}" d="{_path(line, step, across, down)}"/>'
        for index, line in enumerate(panel.lines.values())
    )
    return (
        f'<g transform="translate({x} {y})">'
        f'<text class="title" x="{_LEFT}" y="16">{escape(panel.title)}</text>'
        f'<rect class="band" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{_PLOT_HEIGHT}"/>'
        f'<path class="grid" d="M{_LEFT} {_TOP}h{_PLOT_WIDTH}M{_LEFT} {bottom}h{_PLOT_WIDTH}"/>'
        f'<text class="axis" x="{_LEFT - 5}" y="{_TOP + 8}">{shown(most, panel.unit)}</text>'
        f'<text class="axis" x="{_LEFT - 5}" y="{bottom}">0</text>{paths}'
        f"{_legend([*panel.lines] or ['no series'], bottom + 16)}</g>"
    )


def _path(line: Line, step: float, across: float, down: float) -> str:
    parts, before = [], None
    for at, value in line:
        pen = "L" if before is not None and at - before <= 1.5 * step else "M"
        parts.append(f"{pen}{_LEFT + at * across:.1f} {_TOP + _PLOT_HEIGHT - value * down:.1f}")
        before = at
    return "".join(parts)


def _legend(names: list[str], top: int) -> str:
    rows: list[list[tuple[int, str]]] = [[]]
    for index, name in enumerate(names):
        if sum(len(each) + 2 for _, each in rows[-1]) + len(name) > _LEGEND_WIDTH and rows[-1]:
            rows.append([])
        rows[-1].append((index % _COLORS, name))
    return "".join(
        f'<text x="{_LEFT}" y="{top + 12 * number}">'
        + " ".join(f'<tspan class="t{color}">{escape(name)}</tspan>' for color, name in row)
        + "</text>"
        for number, row in enumerate(rows[:3])
    )


def shown(value: float, unit: str) -> str:
    """Return a value as people read it, in a unit that Grafana's panels have."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB"
    if unit == "s":
        size, name = next((each for each in _TIMES if value >= each[0]), _TIMES[-1])
        return f"{value / size:.3g} {name}"
    return f"{value:.3g}{'/s' if unit in ('reqps', 'cps') else ''}"


_TIMES = ((86400, "d"), (3600, "h"), (1, "s"), (0.001, "ms"))
