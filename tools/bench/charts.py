"""Bar charts as plain SVG, for wide pages and for phones."""

from dataclasses import dataclass

from tools.pages.document import escape

LIGHT = "--c0: #8c959f; --c1: #bf8700; --c2: #0969da;"
DARK = "--c0: #6e7681; --c1: #d29922; --c2: #4493f8;"

# A value has a margin in the page's colour, or the mark's line would run through it.
STYLE = """
svg text { font: 12px system-ui, sans-serif; fill: var(--text); paint-order: stroke; stroke: var(--back);
  stroke-width: 4px; } svg .beside { text-anchor: end; }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); }
.whisker, .mark { stroke: var(--text); fill: none; } .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
"""

_BAR, _TOP = 16, 8
_VALUES = 110
"""Beside the longest bar, for its value."""


@dataclass(frozen=True)
class Layout:
    """Where things are, in pixels."""

    name: str
    width: int
    labels: int
    """Beside the bars; 0 if labels are above them."""

    @property
    def plot(self) -> int:
        """How long the longest bar is."""
        return self.width - self.labels - _VALUES

    @property
    def row(self) -> int:
        """How high a bar is, with its label and the space to the next."""
        return _BAR + (8 if self.labels else 26)

    @property
    def bar(self) -> int:
        """How far below the top of its row a bar is."""
        return 0 if self.labels else 18


WIDE, NARROW = Layout("wide", 760, 230), Layout("narrow", 360, 0)
LONG_LABELS = Layout("wide", 760, 350)


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


def chart(
    title: str, bars: list[Bar], mark: float | None = None, layout: Layout = WIDE, style: str = ""
) -> str:
    """Return an SVG element; `mark` is where a vertical line goes through all rows."""
    most = max([mark or 0, *(max(bar.value, *(bar.spread or (0,))) for bar in bars)])
    scale = layout.plot / (most or 1)
    height = _TOP * 2 + layout.row * len(bars)
    tops = [_TOP + layout.row * index for index in range(len(bars))]
    shapes = "".join(_shape(*row, scale, layout) for row in zip(bars, tops, strict=True))
    words = "".join(_words(*row, scale, layout) for row in zip(bars, tops, strict=True))
    line = "" if mark is None else _mark(layout.labels + mark * scale, height)
    return (
        f'<svg class="{layout.name}" viewBox="0 0 {layout.width} {height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>{style and f'<style>{style}</style>'}{shapes}{line}{words}</svg>"
    )


def both(title: str, bars: list[Bar], mark: float | None = None, wide: Layout = WIDE) -> str:
    """Return the chart for wide pages and for phones; the page's style shows one of them."""
    return chart(title, bars, mark, wide) + chart(title, bars, mark, NARROW)


def _shape(bar: Bar, top: int, scale: float, layout: Layout) -> str:
    return (
        f'<rect class="c{bar.color}" x="{layout.labels}" y="{top + layout.bar}" '
        f'width="{bar.value * scale:.1f}" height="{_BAR}"/>'
    )


def _words(bar: Bar, top: int, scale: float, layout: Layout) -> str:
    middle = top + layout.bar + _BAR / 2
    end = layout.labels + max(bar.value, *(bar.spread or (0,))) * scale
    return (
        f"{_whisker(bar.spread, middle, scale, layout.labels)}{_label(bar.label, top, layout)}"
        f'<text class="value" x="{end + 8:.1f}" y="{middle + 4:.1f}">{escape(bar.text)}</text>'
    )


def _label(label: str, top: int, layout: Layout) -> str:
    if layout.labels:
        right, middle = layout.labels - 8, top + _BAR / 2
        return f'<text class="beside" x="{right}" y="{middle + 4:.1f}">{escape(label)}</text>'
    return f'<text class="above" x="0" y="{top + 13}">{escape(label)}</text>'


def _whisker(spread: tuple[float, float] | None, middle: float, scale: float, left: int) -> str:
    if spread is None:
        return ""
    least, most = (left + value * scale for value in spread)
    return (
        f'<path class="whisker" d="M{least:.1f} {middle}H{most:.1f}'
        f'M{least:.1f} {middle - 4}v8M{most:.1f} {middle - 4}v8"/>'
    )


def _mark(x: float, height: int) -> str:
    return f'<path class="mark" d="M{x:.1f} 0V{height}"/>'
