"""Which servers are measured under which loads: the whole, and what --quick takes of it."""

from dataclasses import dataclass

from tools.bench.loads import CONNECTIONS, CORES, FEW_METHODS, LOADS, MANY_METHODS, RELAYING, Load
from tools.bench.ways import CHOSEN, QUICK, RELAYS, WAYS, WITH_MANY_METHODS, Way


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    rounds: int
    seconds: float
    """Of each turn."""

    tasks: list[tuple[Way, Load]]
    """What has a turn in each round; those of one load are together."""

    rests: int
    """How often each server is started anew, for its start and idle connections."""

    resting: list[Way]
    connections: int
    """How many idle ones."""


def _all(ways: list[Way], loads: list[Load]) -> list[tuple[Way, Load]]:
    return [(way, load) for load in loads for way in ways]


WHOLE = Plan(
    rounds=5,
    seconds=0.5,
    tasks=[
        *_all(WAYS, LOADS),
        *_all(RELAYS, RELAYING),
        *_all(CHOSEN, [*CONNECTIONS, *CORES, FEW_METHODS]),
        *_all(WITH_MANY_METHODS, [MANY_METHODS]),
    ],
    rests=2,
    resting=QUICK,
    connections=10_000,
)
"""Ten minutes."""

SHORT = Plan(rounds=2, seconds=0.15, tasks=_all(QUICK, LOADS), rests=1, resting=QUICK, connections=1_000)
"""A minute."""
