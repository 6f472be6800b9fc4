"""Metrics of a client's channels: what they have found, how it is, and what they do about it."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

STATES = ("ready", "connecting", "transient_failure", "idle", "ejected")
"""What an endpoint may be: gRPC's states of a connection, or left out by outlier detection."""


@dataclass(slots=True)
class ChannelNumbers:
    """What one channel has counted since it was opened; only its event loop's thread counts."""

    picks: int = 0
    """Attempts of calls that were given to an endpoint."""

    retries: int = 0
    """Attempts by the retry policy, after a first one."""

    transparent_retries: int = 0
    """Attempts after one that no server has seen."""

    ejections: int = 0
    connections: int = 0
    """How often an endpoint became ready."""

    def add(self, other: "ChannelNumbers") -> None:
        """Add the numbers of another channel."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class ChannelState(Protocol):
    """What the metrics show of a channel that is open; they are read in any thread."""

    @property
    def target(self) -> str:
        """Where it leads, as its program wrote it."""

    @property
    def numbers(self) -> ChannelNumbers:
        """What it has counted."""

    def states(self) -> dict[str, str]:
        """Return the state of each endpoint that it connects to, one of STATES, by address."""

    def known_at(self) -> float | None:
        """Return when its endpoints were last known to be right, by time.monotonic(); None if always."""


class ChannelMetrics:
    """The metrics of all channels that have one registry.

    The label `target` alone tells the series apart: pods come and go, and a series for each would stay for
    ever. Channels with one target add up. The counters of one that is closed stay.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[ChannelState] = set()
        self._closed: dict[str, ChannelNumbers] = {}

    def show(self, channel: ChannelState) -> Callable[[], None]:
        """Show a channel from now on; return what ends it."""
        with self._lock:
            self._open.add(channel)

        def end() -> None:
            with self._lock:
                self._open.discard(channel)
                self._closed.setdefault(channel.target, ChannelNumbers()).add(channel.numbers)

        return end

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, made of what the channels have counted until now."""
        with self._lock:
            channels = list(self._open)
            numbers = {target: ChannelNumbers() for target in [*self._closed, *(c.target for c in channels)]}
            for target, closed in self._closed.items():
                numbers[target].add(closed)
            for channel in channels:
                numbers[channel.target].add(channel.numbers)
        yield _endpoints(channels)
        yield _ages(channels)
        yield from _counters(numbers)


def _endpoints(channels: list[ChannelState]) -> Metric:
    family = GaugeMetricFamily(
        "grpc_client_endpoints", "Endpoints that channels connect to, by state.", labels=("target", "state")
    )
    counts: dict[str, Counter[str]] = {}
    for channel in channels:
        counts.setdefault(channel.target, Counter()).update(channel.states().values())
    for target, states in counts.items():
        for state in STATES:
            family.add_metric((target, state), states[state])
    return family


def _ages(channels: list[ChannelState]) -> Metric:
    family = GaugeMetricFamily(
        "grpc_client_endpoints_age_seconds",
        "Seconds since a channel's endpoints were known to be right.",
        labels=("target",),
    )
    now = time.monotonic()
    oldest: dict[str, float] = {}
    for channel in channels:
        if (known_at := channel.known_at()) is not None:
            oldest[channel.target] = min(known_at, oldest.get(channel.target, now))
    for target, known_at in oldest.items():
        family.add_metric((target,), now - known_at)
    return family


def _counters(numbers: dict[str, ChannelNumbers]) -> Iterator[Metric]:
    def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"grpc_client_{name}", text, labels=("target", *labels))

    picks = counter("picks", "Attempts of calls that channels gave to an endpoint.")
    retries = counter("retries", "Attempts after another one of the same call.", "kind")
    ejections = counter("ejections", "Endpoints that were left out because calls to them failed.")
    connections = counter("connections", "Endpoints that became ready, each time.")
    for target, counted in numbers.items():
        picks.add_metric((target,), counted.picks)
        retries.add_metric((target, "policy"), counted.retries)
        retries.add_metric((target, "transparent"), counted.transparent_retries)
        ejections.add_metric((target,), counted.ejections)
        connections.add_metric((target,), counted.connections)
    yield from (picks, retries, ejections, connections)
