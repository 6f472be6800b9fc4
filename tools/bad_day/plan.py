"""What goes wrong on a bad day, and when: all of it decided by a seed before the day begins."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STORM = 25.0
"""Seconds in which faults begin, of each round."""

ROUND = 60.0
"""Seconds of a round, about: the storm, the recovery, and a planned event without any fault."""

_GAPS = (0.5, 3.5)
"""Seconds from one fault's beginning to the next one's, at least and at most: shorter than most last."""

_PODS = ("0", "1", "2")
"""Which of the pods that run."""


HOSTILE = (
    "half handshakes",
    "calls without a message",
    "calls that are reset",
    "calls with a message that are reset",
    "bad deadlines",
    "paths that are not UTF-8",
    "unknown methods",
    "headers of 15 kB",
    "headers without end",
    "SETTINGS",
    "PING",
    "PRIORITY",
    "WINDOW_UPDATE",
    "GOAWAY",
    "empty DATA",
    "empty CONTINUATION",
    "unknown frames",
)
"""What a peer with a certificate does to the pod that was started last."""

BAD_CERTIFICATES = ("expired", "of-another-key", "of-another-authority", "truncated", "gone")
"""What is in the files instead of the next certificate."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    resource: str
    """What it happens to; one fault at a time does."""

    seconds: tuple[float, float]
    """How long it lasts, at least and at most."""

    arguments: Sequence[str]
    """To which pod, or in which way; one is chosen."""


KINDS = {
    "pod-killed": Kind("pods", (0, 0), _PODS),
    "pod-stopped": Kind("pods", (1, 6), _PODS),
    "pod-slow": Kind("pods", (2, 6), _PODS),
    "pod-without-descriptors": Kind("pods", (2, 5), _PODS),
    "pod-terminated": Kind("pods", (0, 0), _PODS),
    "all-pods-killed": Kind("pods", (0, 0), ("",)),
    "hostile-peer": Kind("pods", (2, 5), HOSTILE),
    "log-unread": Kind("log", (2, 6), _PODS),
    "log-reader-gone": Kind("log", (0, 0), _PODS),
    "network-cut": Kind("network", (0, 0), _PODS),
    "network-silent": Kind("network", (1, 6), _PODS),
    "network-forgets": Kind("network", (4, 6), _PODS),
    "network-slow": Kind("network", (2, 6), _PODS),
    "database-restarted": Kind("database", (0, 0), ("fast", "kill")),
    "database-failover": Kind("database", (0, 0), ("",)),
    "database-stands-still": Kind("database", (1, 4), ("",)),
    "standby-stands-still": Kind("database", (1, 5), ("",)),
    "disk-full": Kind("database", (2, 5), ("",)),
    "pooler-restarted": Kind("database", (0, 2), ("",)),
    "database-cut": Kind("way-to-database", (0, 0), _PODS),
    "database-slow": Kind("way-to-database", (2, 6), _PODS),
    "dns-fails": Kind("dns", (2, 6), ("servfail", "empty")),
    "watch-lost": Kind("api-server", (2, 6), ("cut", "500", "429", "410", "403", "silent")),
    "server-certificate-bad": Kind("certificates", (2, 6), BAD_CERTIFICATES),
    "client-certificate-bad": Kind("certificates", (2, 6), BAD_CERTIFICATES),
    "configuration-broken": Kind("configuration", (2, 6), ("no-yaml", "wrong", "gone")),
}
"""By what they are called in a plan and in the report."""

PLANNED = (
    "rolling-restart",
    "scale-up-and-down",
    "certificates-rotated",
    "configuration-changed",
    "rollout-of-a-broken-configuration",
)
"""What happens on every good day, and fails no call."""


@dataclass(frozen=True)
class Fault:
    """One fault; times are seconds from the beginning of its round."""

    at: float
    until: float
    kind: str
    argument: str

    def __str__(self) -> str:
        """Return a line of the plan."""
        lasts = f" for {self.until - self.at:.1f} s" if self.until > self.at else ""
        return f"{self.at:5.1f} s  {self.kind} {self.argument}{lasts}"


@dataclass(frozen=True)
class Round:
    """A storm of faults, and the planned event after the recovery from it."""

    faults: tuple[Fault, ...]
    planned: str


def plan(seed: int, seconds: float) -> list[Round]:
    """Return the rounds of a day of about so many seconds; equal seeds have equal days."""
    chance = random.Random(seed)  # noqa: S311 (to be replayed, not to be secret)
    kinds, planned = _dealt(chance, [*KINDS]), _dealt(chance, PLANNED)
    count = max(1, round(seconds / ROUND))
    return [Round(tuple(_storm(chance, kinds)), next(planned)) for _ in range(count)]


def _dealt(chance: random.Random, cards: Sequence[str]) -> Iterator[str]:
    """Yield all in random order, again and again: so a day of a few minutes has each kind."""
    while True:
        yield from chance.sample(cards, len(cards))


def _storm(chance: random.Random, kinds: Iterator[str]) -> Iterator[Fault]:
    free: dict[str, float] = {}
    at = 0.0
    while at < STORM:
        name = next(kinds)
        kind = KINDS[name]
        begin = round(max(at, free.get(kind.resource, 0)), 1)
        end = round(begin + chance.uniform(*kind.seconds), 1)
        free[kind.resource] = end + 1
        yield Fault(begin, end, name, chance.choice(kind.arguments))
        at += chance.uniform(*_GAPS)
