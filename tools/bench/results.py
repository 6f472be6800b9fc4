"""The report as data: what the JSON file holds, and what two of them have in common."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

VERSION = 2
"""Of the file's form; another one is not compared."""

_ENOUGH = 5
"""Rounds. Two runs of the same code lie apart by chance in 2 of 252 cases, and with 2 rounds in 2 of 6."""


@dataclass(frozen=True)
class Spread:
    """A figure of all rounds."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> Self:
        """Take the median and the extremes: with few rounds nothing else says more."""
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Result:
    """One way under one load."""

    load: str
    way: str
    group: str
    unit: str
    """"call", "message", "connection" or "start": what `cpu` and `rate` count."""

    cpu: float
    """Seconds of the server's CPU time a unit; the median."""

    rate: float
    """Units a second; the median. 0 if it says nothing."""

    ratio: Spread
    """Its CPU time, by that of bare grpc.aio in the same round."""

    latencies: dict[str, float]
    """Seconds, {"p50": ...}, of the calls of all rounds; empty unless the load is paced."""

    others: dict[str, float] = field(default_factory=dict)
    """What else was measured, {"MB resident": 40.1}; medians."""

    series: str = ""
    """What a row of loads is about, if the load is one of such a row."""


@dataclass(frozen=True)
class Report:
    """All that was measured in one run."""

    setting: dict[str, Any]
    """Where and how it was measured: what the figures depend on."""

    results: list[Result]

    skipped: dict[str, str]
    """{way: why it was not measured}."""

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps({"version": VERSION} | asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what a file has of `to_json`.

        Raises:
            ValueError: the file is no such report.

        """
        try:
            data = json.loads(file.read_text())
            if data["version"] != VERSION:
                raise ValueError(f"it has version {data['version']!r}, and only {VERSION} can be read")
            results = [Result(**entry | {"ratio": Spread(**entry["ratio"])}) for entry in data["results"]]
            return cls(data["setting"], results, data["skipped"])
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"it is no report of this benchmark: {error!r}") from error


@dataclass(frozen=True)
class Change:
    """What became of one way under one load."""

    load: str
    way: str
    old: Spread
    new: Spread

    @property
    def verdict(self) -> str:
        """Whether it is one: every round of one run is on the same side of every round of the other."""
        if min(self.old.rounds, self.new.rounds) < _ENOUGH:
            return "too few rounds to say"
        apart = self.new.most < self.old.least or self.new.least > self.old.most
        return "yes" if apart else "within the spread"


def changes(old: Report, new: Report) -> list[Change]:
    """Return what both have measured."""
    before = {(result.load, result.way): result.ratio for result in old.results}
    return [
        Change(result.load, result.way, before[result.load, result.way], result.ratio)
        for result in new.results
        if (result.load, result.way) in before
    ]
