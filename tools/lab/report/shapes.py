"""What a chart shows of a run's calls: a lane for each pod, the calls that failed, and p99."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tools.lab.report.model import Run
from tools.lab.report.shares import Life, Step, bins, lanes, lives, load, steps
from tools.pages.document import escape

_ACROSS = 1000
"""How wide the shapes are, in units that are as wide as the reader's screen makes them."""

_MOST_BINS = 120
_LEAST_BIN = 1.0
"""Seconds: in fewer there are so few calls that chance alone makes them look uneven."""

_CAP = 2.0
"""The share that fills a lane."""

_LEAST_FAILURE = 0.3
"""How much of its height a bar of failed calls has at least, so that one call of thousands is seen."""

LEAST_TIME, DECADES = 1e-3, 4
"""Seconds and powers of ten: p99 is shown from 1 ms to 10 s."""


@dataclass(frozen=True)
class Size:
    """How high the parts of a chart are, in pixels."""

    lane: int
    gap: int
    failed: int
    p99: int = 0
    """0 if it is not shown."""


class Shapes:
    """The shapes of one run, on a time axis of `duration` seconds."""

    def __init__(self, run: Run, duration: float, size: Size) -> None:
        self._run, self._duration, self._size = run, duration, size
        self._bins = bins(run, max(_LEAST_BIN, duration / _MOST_BINS))
        self._lives, self._load = lives(run), load(run)
        self._lanes = lanes(self._lives)

    @property
    def failed_top(self) -> int:
        """Where the calls that failed begin, in pixels from the top."""
        return len(self._lanes) * (self._size.lane + self._size.gap)

    @property
    def p99_top(self) -> int:
        """Where p99 begins."""
        return self.failed_top + self._size.failed + 2 * self._size.gap

    @property
    def height(self) -> int:
        """How high all of it is."""
        return self.p99_top + self._size.p99 if self._size.p99 else self.failed_top + self._size.failed

    def svg(self, top: int) -> str:
        """Return an SVG element as wide as what it is put in, `top` pixels below its upper edge."""
        return (
            f'<svg class="shapes" y="{top}" width="100%" height="{self.height}" '
            f'viewBox="0 0 {_ACROSS} {self.height}" preserveAspectRatio="none">'
            f"{self._pods()}{self._failures()}{self._p99() if self._size.p99 else ''}</svg>"
        )

    def _x(self, at: float) -> str:
        return f"{at / self._duration * _ACROSS:.1f}"

    def _pods(self) -> str:
        row = self._size.lane + self._size.gap
        pods = (self._pod(life, row * i) for i, lane in enumerate(self._lanes) for life in lane)
        return "".join(pods)

    def _pod(self, life: Life, top: int) -> str:
        pod, height = life.pod, self._size.lane
        calls = sum(sample.calls.get(pod.name, 0) for sample in self._run.samples)
        title = f"{pod.name} ({pod.address}), {span(life.start, life.end)}: {calls:,} calls"
        left, right = self._x(life.start), self._x(life.end)
        parts = steps(life, self._bins, self._lives, self._load)
        fair = height / _CAP
        return (
            f'<g class="pod"><title>{escape(title)}</title>'
            f'<path class="lane" d="M{left} {top}H{right}V{top + height}H{left}Z"/>'
            f"{self._columns('fair', parts, top + height, lambda share: min(share, 1) * fair)}"
            f"{self._columns('over', parts, top + fair, lambda share: (min(share, _CAP) - 1) * fair)}</g>"
        )

    def _columns(
        self, name: str, parts: Iterable[Step], base: float, height: Callable[[float], float]
    ) -> str:
        """Return a column for each part, as one path, whose pieces the browser closes when it fills them."""
        path, end = "", -1.0
        for part in parts:
            if (up := height(part.share)) <= 0:
                continue
            if part.start != end:
                path += f"{path and f'V{base:g}'}M{self._x(part.start)} {base:g}"
            path += f"V{base - up:.1f}H{self._x(part.end)}"
            end = part.end
        return f'<path class="{name}" d="{path}V{base:g}"/>' if path else ""

    def _failures(self) -> str:
        """Return a bar for each bin with failed calls, full if as many failed as are made on average."""
        base = self.failed_top + self._size.failed
        bars = []
        for each in self._bins:
            if not (failed := each.failed.total()):
                continue
            part = min(1.0, failed / (self._load * (each.end - each.start) or failed))
            height = self._size.failed * (_LEAST_FAILURE + (1 - _LEAST_FAILURE) * part)
            why = ", ".join(f"{count:,} {cause}" for cause, count in each.failed.most_common())
            bars.append(
                f'<g class="failed"><title>{escape(f"failed, {span(each.start, each.end)}: {why}")}</title>'
                f'<path class="failure" d="M{self._x(each.start)} {base}v{-height:.1f}'
                f'H{self._x(each.end)}V{base}Z"/></g>'
            )
        return f'<path class="grid" d="M0 {base}H{_ACROSS}"/>{"".join(bars)}'

    def _p99(self) -> str:
        grid = "".join(f"M0 {self._height_of(LEAST_TIME * 10**n)}H{_ACROSS}" for n in range(DECADES + 1))
        path, drawing = "", False
        for each in self._bins:
            if each.p99 is not None:
                start = "V" if drawing else f"M{self._x(each.start)} "
                path += f"{start}{self._height_of(each.p99)}H{self._x(each.end)}"
            drawing = each.p99 is not None
        return f'<path class="grid" d="{grid}"/><path class="p99" d="{path}"/>'

    def _height_of(self, seconds: float) -> str:
        decades = math.log10(max(seconds, LEAST_TIME) / LEAST_TIME)
        return f"{self.p99_top + self._size.p99 * (1 - min(1, decades / DECADES)):.1f}"


def span(start: float, end: float) -> str:
    """Return two times as people read them."""
    return f"{start:.1f} s" if start == end else f"{start:.1f} to {end:.1f} s"
