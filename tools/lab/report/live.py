"""How a run goes while it runs: a table on a terminal, a line now and then elsewhere."""

import re
from collections import Counter, deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich import live
from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from tools.lab.report.evenness import jain
from tools.pages.units import readable

WINDOW = 5.0
"""Seconds whose calls a row shows: enough to see whether they are even, few enough to follow events."""

_LINE_INTERVAL = 10.0
"""Seconds between lines where there is no terminal and no event."""

_FIGURES = 45
"""Columns of a terminal that a row has for its figures and lines."""

_BARS = " ▁▂▃▄▅▆▇█"

Sample = Mapping[str, Any]
"""One of a run's samples, as the report's JSON has it."""


class Live:
    """Shows runs that go on at the same time; use it as a context manager.

    Args:
        title: what all of them are part of.
        duration: seconds that they will take.
        runs: their names; each is a row.
        console: where to show them; stdout by default.

    """

    def __init__(self, title: str, duration: float, runs: list[str], console: Console | None = None) -> None:
        self._title, self._duration = title, duration
        self._rows = {run: _Row() for run in runs}
        self._console = console or Console()
        self._table = live.Live(console=self._console, auto_refresh=False)
        self._said: tuple[float, str | None] = (-_LINE_INTERVAL, None)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._table.start()
        else:
            self._console.print(f"{self._title}: {self._duration:.0f} s", markup=False, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.stop()

    def update(self, at: float, samples: Mapping[str, Sample], event: str | None = None) -> None:
        """Show what is known `at` seconds after the start.

        Args:
            at: seconds since the start.
            samples: the newest sample of each run that has one.
            event: the title of what happens now; None if nothing does.

        """
        for run, sample in samples.items():
            self._rows[run].add(sample)
        if self._console.is_terminal:
            self._table.update(Group(self._progress(at, event), self._figures(at)), refresh=True)
        elif event != self._said[1] or at >= self._said[0] + _LINE_INTERVAL:
            self._said = at, event
            self._console.print(self._line(at, event), markup=False, highlight=False, soft_wrap=True)

    def _progress(self, at: float, event: str | None) -> Table:
        left = max(0.0, self._duration - at)
        grid = Table.grid(padding=(0, 1))
        done = min(at, self._duration)
        bar = ProgressBar(total=self._duration, completed=done, width=24, complete_style="cyan")
        clock = f"{at:.0f} of {self._duration:.0f} s, {left:.0f} s left"
        grid.add_row(Text(self._title, style="bold"), bar, Text(clock), Text(event or "steady", style="cyan"))
        return grid

    def _figures(self, at: float) -> Table:
        names = ("calls/s", "Jain", "failed", "p99")
        right = [Column(name, justify="right", no_wrap=True) for name in names]
        # What gets narrower to leave room for the figures: bars first, then names.
        name = Column("", no_wrap=True, max_width=max(1, self._console.width - _FIGURES))
        bars = Column(Text("each pod", no_wrap=True, overflow="ellipsis"))
        table = Table(name, right[0], bars, *right[1:])
        pods = sorted({pod for row in self._rows.values() for pod in row.calls(at)}, key=_natural)
        for run, row in self._rows.items():
            calls = row.calls(at)
            shares = [calls[pod] for pod in pods]
            failed = Text(str(row.failed), style="bold red" if row.failed else "")
            table.add_row(
                Text(run),
                f"{row.rate(at):.0f}",
                Text(sparkline(shares), no_wrap=True, overflow="ellipsis"),
                f"{jain(shares):.3f}" if any(shares) else "",
                failed,
                readable(row.p99) if row.p99 is not None else "",
            )
        return table

    def _line(self, at: float, event: str | None) -> str:
        rate = sum(row.rate(at) for row in self._rows.values())
        failed = ", ".join(f"{run} {row.failed}" for run, row in self._rows.items() if row.failed)
        clock = f"{at:5.0f} of {self._duration:.0f} s, {event or 'steady'}"
        return f"{clock}: {rate:.0f} calls/s, failed so far: {failed or 'none'}"


class _Row:
    """What a row shows of a run's samples."""

    def __init__(self) -> None:
        self.failed = 0
        self.p99: float | None = None
        """Seconds; None before the first call and where none was answered."""

        self._last: deque[tuple[float, Sample]] = deque()
        """Each with the time at which it begins."""

        self._end = 0.0

    def add(self, sample: Sample) -> None:
        """Take the next sample."""
        self.failed += sum(sample["failed"].values())
        self.p99 = sample["p99"]
        self._last.append((self._end, sample))
        self._end = sample["at"]
        while self._last[0][1]["at"] <= self._end - WINDOW:
            self._last.popleft()

    def calls(self, at: float) -> Counter[str]:
        """Return how many calls each pod has answered lately."""
        total: Counter[str] = Counter()
        for _, sample in self._recent(at):
            total.update({pod: count for pod, count in sample["calls"].items() if count})
        return total

    def rate(self, at: float) -> float:
        """Return how many calls a second were answered lately."""
        recent = self._recent(at)
        return self.calls(at).total() / (at - recent[0][0]) if recent else 0.0

    def _recent(self, at: float) -> list[tuple[float, Sample]]:
        return [each for each in self._last if each[1]["at"] > at - WINDOW]


def sparkline(values: list[int]) -> str:
    """Return a bar for each value, as high as it is beside the largest; nothing for 0."""
    most = max([*values, 1])
    return "".join(_BARS[-(-value * (len(_BARS) - 1) // most)] for value in values)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts pod-10 behind pod-9."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]
