"""What the report tells of a run, made of its calls: samples, phases and figures (the report's JSON)."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any

from tools.lab.calls import Call, Calls
from tools.lab.play import Happening
from tools.lab.report.evenness import jain
from tools.pages.percentiles import median_and_p99

STEP = 0.5
"""Seconds of a sample."""

_SHARE_WINDOW = 2.0
"""Seconds in which a new pod must get half of an even share, for it to have its share from their start."""

_DETAILS = 80
"""Characters of a failure's text. Addresses and numbers are left out: equal causes are counted as one."""

_VARYING = re.compile(r"(ipv4:)?\d+\.\d+\.\d+\.\d+(:\d+)?|\d{4,}")


@dataclass
class PodLife:
    """When a pod took calls, in seconds since the story's start."""

    name: str
    address: str
    ready: float
    left: float | None = None
    """When it began to terminate, and so was no endpoint any more."""
    end: float | None = None
    """When its process had ended."""

    def serves(self, begin: float, end: float) -> bool:
        """Return whether it was an endpoint from `begin` to `end`."""
        return self.ready <= begin and (self.left is None or self.left >= end)


@dataclass
class Run:
    """The calls of a client, what happened meanwhile, and to which pods; all since the story's start."""

    calls: Calls
    start: float
    """Seconds since the epoch."""
    duration: float
    happenings: Sequence[Happening]
    pods: Sequence[PodLife]
    _by_start: list[tuple[float, int, Call]] = field(init=False)

    def __post_init__(self) -> None:
        timed = ((call.started - self.start, number, call) for number, call in self.calls.made.items())
        self._by_start = sorted(each for each in timed if 0 <= each[0] < self.duration)

    def report(self) -> dict[str, Any]:
        """Return what is told of the run: duration, pods, samples, phases and figures."""
        phases = [self._phase(*each) for each in self._spans()]
        return {
            "duration": round(self.duration, 3),
            "pods": [
                {"name": pod.name, "address": pod.address, "from": pod.ready, "to": pod.end}
                for pod in self.pods
            ],
            "samples": list(self.samples(self.duration)),
            "phases": phases,
            "figures": self._figures(phases),
        }

    def samples(self, end: float, begin: float = 0.0) -> Iterator[dict[str, Any]]:
        """Yield a sample for each whole STEP from `begin` to `end`."""
        for index in range(round(begin / STEP), int(end / STEP)):
            yield self._sample(index * STEP, (index + 1) * STEP)

    def _sample(self, begin: float, end: float) -> dict[str, Any]:
        calls = self._between(begin, end)
        answered = self._answered(calls)
        connections = {
            (attempt.pod, attempt.peer)
            for number, _ in calls
            for attempt in self.calls.attempts.get(number, ())
        }
        return {
            "at": end,
            "calls": dict(answered),
            "failed": dict(Counter(call.code for _, call in calls if call.failed)),
            **_latencies(calls),
            "connections": len(connections),
        }

    def _spans(self) -> list[tuple[Happening | None, float, float]]:
        """Return the events, and the steady phases between them."""
        spans: list[tuple[Happening | None, float, float]] = []
        end = 0.0
        for happening in self.happenings:
            until = self.duration if happening.until is None else happening.until
            spans += [(None, end, happening.at), (happening, happening.at, until)]
            end = until
        return [*spans, (None, end, self.duration)]

    def _phase(self, happening: Happening | None, begin: float, end: float) -> dict[str, Any]:
        calls = self._between(begin, end)
        return {
            "event": happening.name if happening else None,
            "title": happening.title if happening else "steady",
            "from": begin,
            "to": end,
            "calls": len(calls),
            "jain": self._evenness(begin, end),
            **_latencies(calls),
            "failed": dict(Counter(_cause(call) for _, call in calls if call.failed)),
        }

    def _evenness(self, begin: float, end: float) -> float | None:
        """Return Jain's index over the pods that were there all the time, if several were."""
        pods = [pod.name for pod in self.pods if pod.serves(begin, end)]
        answered = self._answered(self._between(begin, end))
        if len(pods) <= 1 or not answered:
            return None
        return jain([answered[pod] for pod in pods])

    def _figures(self, phases: Sequence[dict[str, Any]]) -> dict[str, Any]:
        steady = [phase["jain"] for phase in phases if phase["event"] is None and phase["jain"] is not None]
        slow = [phase["p99"] for phase in phases if (phase["event"] or "").startswith("slow-pod")]
        calls = self._between(0, self.duration)
        failed = {True: 0, False: 0}
        for at, _, call in self._by_start:
            failed[self._is_planned(at)] += call.failed
        return {
            "jain_steady": sum(steady) / len(steady) if steady else None,
            "new_pod_seconds": self._new_pod_seconds(),
            "failed_planned": failed[True],
            "failed_unplanned": failed[False],
            **_latencies(calls),
            "p99_slow_pod": slow[0] if slow else None,
            "connections_opened": len(
                {
                    (attempt.pod, attempt.peer)
                    for attempts in self.calls.attempts.values()
                    for attempt in attempts
                }
            ),
        }

    def _is_planned(self, at: float) -> bool:
        """Return whether the event that a moment is in, or the last one before it, is planned."""
        before = [happening for happening in self.happenings if happening.at <= at]
        return before[-1].planned if before else True

    def _new_pod_seconds(self) -> float | None:
        """Return what the slowest pod of the first scale-up takes from its readiness to its share of calls.

        None if one never has it before the next event, or none was added.
        """
        for index, happening in enumerate(self.happenings):
            if happening.name == "scale-up":
                following = [each.at for each in self.happenings[index + 1 :]]
                end = min([*following, self.duration])
                new = [pod for pod in self.pods if happening.at <= pod.ready < end]
                waits = [self._wait(pod, end) for pod in new]
                return None if None in waits else max(waits, default=None)  # type: ignore[type-var]
        return None

    def _wait(self, pod: PodLife, end: float) -> float | None:
        """Return the time from a pod's readiness until it has its share of calls."""
        arrivals = [at for at, number, _ in self._by_start if self._pod_of(number) == pod.name]
        for at in arrivals:
            if pod.ready - STEP <= at < end and self._has_share(arrivals, at):
                return max(0.0, at - pod.ready)
        return None

    def _has_share(self, arrivals: Sequence[float], at: float) -> bool:
        until = at + _SHARE_WINDOW
        ready = sum(pod.serves(until, at) for pod in self.pods)  # for a part of the window at least
        even = len(self._between(at, until)) / ready
        return sum(at <= each < until for each in arrivals) >= even / 2

    def _between(self, begin: float, end: float) -> list[tuple[int, Call]]:
        first, last = (bisect_left(self._by_start, at, key=itemgetter(0)) for at in (begin, end))
        return [(number, call) for _, number, call in self._by_start[first:last]]

    def _answered(self, calls: Sequence[tuple[int, Call]]) -> Counter[str]:
        """Return how many calls each pod has answered; of several pods the last one had the answer."""
        answers = Counter(self._pod_of(number) for number, call in calls if not call.failed)
        del answers[""]
        return answers

    def _pod_of(self, number: int) -> str:
        attempts = self.calls.attempts.get(number)
        return attempts[-1].pod if attempts else ""


def _latencies(calls: Sequence[tuple[int, Call]]) -> dict[str, float | None]:
    return median_and_p99([call.latency for _, call in calls if not call.failed])


def _cause(call: Call) -> str:
    details = _VARYING.sub("…", call.details)
    return f"{call.code}: {details[:_DETAILS]}"


def events(happenings: Sequence[Happening]) -> list[dict[str, Any]]:
    """Return the events as the report has them."""
    return [asdict(each) for each in happenings]
