"""What a chart of a run shows: which pods there were, and what share of the calls each of them had."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from tools.lab.report.model import Pod, Run, Sample


@dataclass(frozen=True)
class Bin:
    """Samples that are shown as one, since there are more of them than pixels, and few calls in each."""

    start: float
    end: float
    calls: Counter[str]
    failed: Counter[str]
    p99: float | None
    """The largest of the samples, as they don't say more; None where no call was answered."""


@dataclass(frozen=True)
class Life:
    """From when to when a pod was there, or had calls."""

    pod: Pod
    start: float
    end: float

    def within(self, start: float, end: float) -> float:
        """Return how many seconds of it are between two times."""
        return max(0.0, min(self.end, end) - max(self.start, start))


@dataclass(frozen=True)
class Step:
    """A part of a pod's life."""

    start: float
    end: float
    share: float
    """Of the calls: 1 is what it gets if the load is spread evenly over the pods that are there."""


def bins(run: Run, width: float) -> list[Bin]:
    """Return a run's samples in bins of at least `width` seconds."""
    result: list[Bin] = []
    start, held = 0.0, list[Sample]()
    for sample in run.samples:
        held.append(sample)
        if sample.at >= start + width * 0.99 or sample is run.samples[-1]:
            result.append(_bin(start, held))
            start, held = sample.at, []
    return result


def _bin(start: float, samples: Sequence[Sample]) -> Bin:
    calls, failed = Counter[str](), Counter[str]()
    for sample in samples:
        calls.update(sample.calls)
        failed.update(sample.failed)
    p99 = max((sample.p99 for sample in samples if sample.p99 is not None), default=None)
    return Bin(start, samples[-1].at, calls, failed, p99)


def load(run: Run) -> float:
    """Return how many calls a second are made in an ordinary moment of the run."""
    starts = [0.0, *(sample.at for sample in run.samples)]
    counts = [sum(sample.calls.values()) + sum(sample.failed.values()) for sample in run.samples]
    rates = [count / (end - start) for count, (start, end) in zip(counts, pairwise(starts), strict=True)]
    return median(rates) if rates else 0.0


def lives(run: Run) -> list[Life]:
    """Return all pods of a run in the order in which they came."""
    starts = [0.0, *(sample.at for sample in run.samples)]
    found = []
    for pod in run.pods:
        spans = [
            span
            for span, sample in zip(pairwise(starts), run.samples, strict=True)
            if sample.calls.get(pod.name)
        ]
        end = run.duration if pod.end is None else pod.end
        # A sample tells only roughly when a call was, so the pod's own times count where they are in it.
        first = min([pod.start, *(start for start, until in spans if until <= pod.start)])
        last = max([first, end, *(until for start, until in spans if start >= end)])
        found.append(Life(pod, min(first, run.duration), min(last, run.duration)))
    return sorted(found, key=lambda life: life.start)


def lanes(all_lives: Sequence[Life]) -> list[list[Life]]:
    """Return the pods in as few lanes as they fit in: a pod takes the lane of one that has ended."""
    result: list[list[Life]] = []
    for life in all_lives:
        free = next((lane for lane in result if lane[-1].end <= life.start), None)
        if free is None:
            result.append(free := [])
        free.append(life)
    return result


def steps(life: Life, all_bins: Sequence[Bin], all_lives: Sequence[Life], rate: float) -> list[Step]:
    """Return a pod's share over its life, where `rate` calls a second are to be spread."""
    found = []
    for each in all_bins:
        seconds = life.within(each.start, each.end)
        if not seconds:
            continue
        length = each.end - each.start
        pods = sum(other.within(each.start, each.end) for other in all_lives) / length
        share = each.calls[life.pod.name] / seconds / (rate / pods) if rate else 0.0
        found.append(Step(max(each.start, life.start), min(each.end, life.end), share))
    return found
