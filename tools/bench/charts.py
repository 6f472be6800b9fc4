"""Bar charts as plain SVG, with the colours of the page's style."""

from dataclasses import dataclass
from html import escape

_WIDTH, _LABELS, _VALUES = 760, 230, 130
_PLOT = _WIDTH - _LABELS - _VALUES
_ROW, _BAR, _TOP = 24, 16, 8


@dataclass(frozen=True)
class Bar:
    """One row of a chart."""

    label: str
    value: float
    text: str
    """The value as people read it, beside the bar."""

    color: int
    """Which colour of the style."""

    spread: tuple[float, float] | None = None
    """Between which values the rounds were."""


def chart(title: str, bars: list[Bar], mark: float | None = None) -> str:
    """Return an SVG element; `mark` is where a vertical line goes through all rows."""
    most = max(
        [mark or 0, *(max(bar.value, *(bar.spread or ())) if bar.spread else bar.value for bar in bars)]
    )
    scale = _PLOT / (most or 1)
    height = _TOP * 2 + _ROW * len(bars)
    rows = "".join(_row(bar, _TOP + _ROW * index, scale) for index, bar in enumerate(bars))
    line = "" if mark is None else _mark(_LABELS + mark * scale, height)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>{rows}{line}</svg>"
    )


def _row(bar: Bar, top: int, scale: float) -> str:
    middle, end = top + _BAR / 2, _LABELS + bar.value * scale
    furthest = _LABELS + bar.spread[1] * scale if bar.spread else end
    return (
        f"<g><title>{escape(bar.label)}: {escape(bar.text)}</title>"
        f'<text class="label" x="{_LABELS - 8}" y="{middle + 4:.1f}">{escape(bar.label)}</text>'
        f'<rect class="c{bar.color}" x="{_LABELS}" y="{top}" width="{end - _LABELS:.1f}" height="{_BAR}"/>'
        f"{_whisker(bar.spread, middle, scale)}"
        f'<text x="{max(end, furthest) + 8:.1f}" y="{middle + 4:.1f}">{escape(bar.text)}</text></g>'
    )


def _whisker(spread: tuple[float, float] | None, middle: float, scale: float) -> str:
    if spread is None:
        return ""
    least, most = (_LABELS + value * scale for value in spread)
    return (
        f'<path class="whisker" d="M{least:.1f} {middle}H{most:.1f}'
        f'M{least:.1f} {middle - 4}v8M{most:.1f} {middle - 4}v8"/>'
    )


def _mark(x: float, height: int) -> str:
    return f'<path class="mark" d="M{x:.1f} 0V{height}"/>'
