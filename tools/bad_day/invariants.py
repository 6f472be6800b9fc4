"""What holds on every day, however bad; each of it says what it has found."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from user import user_service_pb2 as pb

from tools.bad_day.ledger import Ledger, Made
from tools.bad_day.vitals import Vitals

RECOVERY = 10.0
"""Seconds after a storm's last fault within which no call fails any more."""

SLACK = 3.0
"""Seconds over the deadline that a busy machine may need to tell a caller."""

MEMORY = 256 * 2**20
"""Bytes: what k8s/base gives a pod."""

TELLING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
"""The codes that tell a caller to come back; a fault excuses no other."""

LATE = "CANCELLED"
"""What C-core says to a call that comes while its server stops, as it may if nobody has told the client."""

CUT = ("envoy", "INTERNAL")
"""What a proxy says of an answer that is cut once it has passed on the beginning: it resets the stream."""

ENDING = 56.0
"""Seconds that a server takes to end at most: the grace of its drain here, and twenty for slow readers."""

UNTOLD = ("postgres", "sqlite", "asyncpg", "sql", "pgbouncer", "transaction", "relation", "traceback")
"""Words of the database, which no caller is to read."""

GROWTH = {"descriptors": 24, "threads": 16 + (os.cpu_count() or 1), "tasks": 24}
"""What a process at rest may have more at the end than at the beginning.

Pools that are full then: ten connections to the database, asyncio's threads (four more than processors, and
32 at most) and those of C-core's event engine.
"""

_SHOWN = 5
"""Examples of what was wrong."""


@dataclass(frozen=True)
class Window:
    """A time without any fault, more than RECOVERY after the last one, in seconds."""

    last_fault: float | None
    """When it was over; None before the first one."""

    start: float
    end: float
    planned: str
    """What happened in it."""


@dataclass
class Day:
    """What is known at the end."""

    ledger: Ledger = field(default_factory=Ledger)
    users: list[pb.User] = field(default_factory=list)
    """All that the service lists."""

    calm: list[Window] = field(default_factory=list)
    terminated: list[float] = field(default_factory=list)
    """When a pod was told to end, and its clients were told nothing."""

    first: dict[str, Vitals] = field(default_factory=dict)
    """Of processes at rest, before the first call, by name; those of pods begin with "pod"."""

    last: dict[str, Vitals] = field(default_factory=dict)
    """The same after the last call, and of pods after each storm."""

    peaks: dict[str, int] = field(default_factory=dict)
    """The most bytes of memory that each server has had."""

    unrecovered: list[str] = field(default_factory=list)
    """What else was not as it should be in calm times: pods that are not ready, and events that failed."""


@dataclass(frozen=True)
class Finding:
    """Whether an invariant was held."""

    name: str
    title: str
    held: bool
    detail: str


def check(day: Day) -> list[Finding]:
    """Check all of them."""
    return [
        _users_are_there(day),
        _answers_are_true(day),
        _calls_end(day.ledger),
        _failures_tell(day),
        _calm_fails_nothing(day),
        _memory(day),
        *(_no_growth(day, what) for what in GROWTH),
    ]


def _users_are_there(day: Day) -> Finding:
    counted = Counter(user.name for user in day.users)
    listed = {user.name: user for user in day.users}
    wrong = [f"{name} is there {count} times" for name, count in counted.items() if count > 1]
    wrong += [f"{name} is lost" for name, user in day.ledger.acknowledged.items() if listed.get(name) != user]
    wrong += [f"{name} was never asked for" for name in listed if name not in day.ledger.attempted]
    good = f"{len(day.ledger.acknowledged)} users acknowledged, each there once; {len(day.users)} in all"
    return _finding("acknowledged-users", "no acknowledged user lost, none twice", wrong, good)


def _answers_are_true(day: Day) -> Finding:
    answers = day.ledger.succeeded
    wrong = day.ledger.untrue or ([] if answers else ["no call was answered"])
    good = ", ".join(f"{count} answers through {client}" for client, count in answers.items())
    return _finding("true-answers", "no answer contradicts another", wrong, good)


def _calls_end(ledger: Ledger) -> Finding:
    over = [made for made in (*ledger.running, *ledger.late) if _is_over(made, ledger)]
    title = f"no call without a status {SLACK:g} s past its deadline, while its client gets to run"
    longest = max((end - start for start, end in ledger.stalls), default=0.0)
    good = f"{ledger.made} calls ended in time; the clients stood still for {longest:.1f} s at most"
    return _finding("deadlines", title, [*map(str, over)], good)


def _is_over(made: Made, ledger: Ledger) -> bool:
    end = ledger.now() if made.ended is None else made.ended
    return end - ledger.stalled(made.began, end) > made.deadline + SLACK


def _failures_tell(day: Day) -> Finding:
    failed = day.ledger.failed
    wrong = [made for made in failed if not _tells(made, day) or _tells_secrets(made)]
    good = ", ".join(f"{count} {code}" for code, count in Counter(made.code for made in failed).most_common())
    title = "failed calls say that one may come back, and no more"
    return _finding("codes", title, [*map(str, wrong)], good or "no call failed")


def _tells(made: Made, day: Day) -> bool:
    return (
        made.code in TELLING
        or (made.code == LATE and any(made.overlaps(at, at + ENDING) for at in day.terminated))
        or (made.client, made.code) == CUT
    )


def _tells_secrets(made: Made) -> bool:
    return any(word in made.detail.lower() for word in UNTOLD)


def _calm_fails_nothing(day: Day) -> Finding:
    wrong = [*day.unrecovered, *([] if day.calm else ["there was no calm time"])]
    for window in day.calm:
        failed = [made for made in day.ledger.failed if made.within(window.start, window.end)]
        wrong += [f"{made}, in {window.planned}" for made in failed]
    title = f"from {RECOVERY:g} s after the last fault on no call fails, whatever is planned"
    good = "; ".join(
        f"{window.planned} in {window.start:.0f}-{window.end:.0f} s{_recovery(day.ledger, window)}"
        for window in day.calm
    )
    return _finding("calm", title, wrong, good)


def _recovery(ledger: Ledger, window: Window) -> str:
    """Return when calls failed for the last time after a storm; nothing if there was none before."""
    if window.last_fault is None:
        return ""
    began = [made.began for made in ledger.failed if window.last_fault < made.began < window.start]
    if not began:
        return ", recovered at once before"
    return f", recovered {max(began) - window.last_fault:.1f} s after the last fault before"


def _memory(day: Day) -> Finding:
    wrong = [f"{name} had {peak / 2**20:.0f} MiB" for name, peak in day.peaks.items() if peak > MEMORY]
    most = max(day.peaks.values(), default=0)
    if not most:
        wrong.append("no server's memory is known")
    title = f"each server inside its {MEMORY // 2**20} MiB"
    return _finding("memory", title, wrong, f"at most {most / 2**20:.0f} MiB")


def _no_growth(day: Day, what: str) -> Finding:
    """Hold each process to what its like had at rest; a pod that came later to all pods of the beginning."""
    first = {name: count for name, v in day.first.items() if (count := getattr(v, what)) is not None}
    of_pods = [count for name, count in first.items() if name.startswith("pod")]
    grown: dict[str, int] = {}
    for name, vitals in day.last.items():
        like = [first[name]] if name in first else of_pods if name.startswith("pod") else []
        after = getattr(vitals, what)
        if like and after is not None:
            grown[f"{name} had {max(like)} {what} at rest, and has {after}"] = after - max(like)
    wrong = [text for text, more in grown.items() if more > GROWTH[what]]
    if not grown or len(grown) < len(day.last) / 2:
        wrong.append(f"only {len(grown)} of {len(day.last)} times a process told")
    title = f"no growth of {what} (more than {GROWTH[what]}) in any server and in the clients"
    return _finding(what, title, wrong, f"most: {max(grown, key=grown.__getitem__)}" if grown else "")


def _finding(name: str, title: str, wrong: Sequence[str], good: str) -> Finding:
    if not wrong:
        return Finding(name, title, held=True, detail=good)
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return Finding(name, title, held=False, detail="; ".join(wrong[:_SHOWN]) + more)
