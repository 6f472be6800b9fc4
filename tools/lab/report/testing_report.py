"""Reports to test with: a small simulation of pods, of calls and of ways to spread them."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from tools.lab.report.evenness import jain

STEP, LOAD, DURATION = 0.5, 40, 60.0

PODS: dict[str, tuple[float, float | None]] = {
    "pod-1": (0, 32),
    "pod-2": (0, 34),
    "pod-3": (0, 36),
    "pod-4": (6, 38),
    "pod-5": (6, 40),
    "pod-6": (6, 42),
    "pod-7": (31, None),
    "pod-8": (33, None),
    **{f"pod-{number}": (17 + 2 * number, 55) for number in range(9, 13)},
}
"""From when to when each pod is there."""

EVENTS: list[dict[str, Any]] = [
    {"at": 5.0, "until": 9.0, "name": "scale-up", "title": "scale 3 → 6", "planned": True},
    {"at": 13.0, "until": 18.0, "name": "slow-pod", "title": "one pod slow", "planned": False},
    {"at": 21.0, "until": 26.0, "name": "not-serving", "title": "one NOT_SERVING", "planned": True},
    {"at": 30.0, "until": 42.0, "name": "roll", "title": "rolling restart", "planned": True},
    {"at": 45.0, "until": 45.0, "name": "kill", "title": "kill -9", "planned": False},
    {"at": 49.0, "until": 51.0, "name": "database", "title": "database restart", "planned": False},
    {"at": 54.0, "until": 58.0, "name": "scale-down", "title": "scale 6 → 2", "planned": True},
]

type Pick = Callable[[list[str], random.Random], str]
"""Which of the pods that are there gets a call."""


def _turns() -> Pick:
    last = [0]

    def pick(pods: list[str], _: random.Random) -> str:
        last[0] += 1
        return pods[last[0] % len(pods)]

    return pick


def _any(pods: list[str], chance: random.Random) -> str:
    return chance.choice(pods)


WAYS: dict[str, tuple[str, Pick, bool]] = {
    "pick-first": ("pick_first on a ClusterIP", lambda pods, _: pods[0], False),
    "headless-dns": ("dns:/// round_robin", lambda pods, chance: chance.choice(pods[:3]), True),
    "kubernetes-round-robin": ("kubernetes:/// round_robin", _turns(), False),
    "kubernetes-least-request": ("kubernetes:/// least_request", _any, True),
    "nginx": ('nginx <ingress> & "values"', lambda pods, chance: chance.choice([*pods, pods[-1]]), False),
}


def lab() -> dict[str, Any]:
    """Return a report of the lab."""
    runs = [_run(name, title, pick, slow_hurts=hurts) for name, (title, pick, hurts) in WAYS.items()]
    skipped = [{"name": "go-guide", "title": "the guide's Go client", "why": "Go is not on PATH <yet>"}]
    setting = {"Python": "3.14", "cores": 2, "calls a second, each": LOAD, "by": "<b>simulation</b>"}
    return {
        "version": 1,
        "kind": "lab",
        "title": "How gRPC calls spread over pods",
        "setting": setting,
        "events": [dict(event) for event in EVENTS],
        "runs": runs,
        "skipped": skipped,
    }


def bad_day() -> dict[str, Any]:
    """Return a report of a bad day that broke an invariant."""
    invariants = [
        {"name": name, "title": title, "held": held, "detail": detail}
        for name, title, held, detail in (
            ("acknowledged", "Acknowledged users are there once", True, "421 users, pod-1 24 → 25"),
            ("deadline", "No call outlives its deadline by 3 s", False, "1 DEADLINE_EXCEEDED <at 31 s>"),
        )
    ]
    title, pick, _ = WAYS["kubernetes-round-robin"]
    run = _run("bad-day", title, pick, slow_hurts=True)
    figures = dict.fromkeys(run["figures"]) | {"failed_planned": 0, "failed_unplanned": 4}
    return lab() | {
        "kind": "bad-day",
        "title": "A bad day",
        "setting": {"minutes": 1, "engine": "grpc-aio"},
        "runs": [run | {"figures": figures}],
        "skipped": [],
        "seed": 7,
        "invariants": invariants,
    }


def _alive(at: float) -> list[str]:
    return [pod for pod, (start, end) in PODS.items() if start <= at and (end is None or at < end)]


def _run(name: str, title: str, pick: Pick, *, slow_hurts: bool) -> dict[str, Any]:
    chance = random.Random(name)  # noqa: S311 (it is a simulation)
    times = [STEP * step for step in range(int(DURATION / STEP))]
    samples = [_sample(at, pick, chance, slow_hurts=slow_hurts) for at in times]
    phases = [_phase(e["name"], e["title"], e["at"], e["until"] + STEP, samples) for e in EVENTS]
    phases.insert(0, _phase(None, "steady", 0.0, 5.0, samples))
    slow = next(phase for phase in phases if phase["event"] == "slow-pod")
    planned = {event["name"] for event in EVENTS if event["planned"]}
    return {
        "name": name,
        "title": title,
        "about": f"The calls of {title}, as a simulation has them.",
        "events": None,
        "duration": DURATION,
        "pods": [
            {"name": pod, "address": f"127.0.0.{pod[4:]}", "from": start, "to": end}
            for pod, (start, end) in PODS.items()
        ],
        "samples": samples,
        "phases": phases,
        "figures": {
            "jain_steady": phases[0]["jain"],
            "new_pod_seconds": _first_call("pod-4", samples, 6.0),
            "failed_planned": sum(sum(p["failed"].values()) for p in phases if p["event"] in planned),
            "failed_unplanned": sum(sum(p["failed"].values()) for p in phases if p["event"] not in planned),
            "p50": phases[0]["p50"],
            "p99": phases[0]["p99"],
            "p99_slow_pod": slow["p99"],
            "connections_opened": len({pod for sample in samples for pod in sample["calls"]}),
        },
    }


def _sample(at: float, pick: Pick, chance: random.Random, *, slow_hurts: bool) -> dict[str, Any]:
    pods = _alive(at)
    picked = Counter(pick(pods, chance) for _ in range(int(LOAD * STEP)))
    failed: dict[str, int] = {}
    if at == 45.0:  # noqa: PLR2004 (the kill)
        failed["UNAVAILABLE: Socket closed"] = picked.pop(pods[0], 0)
    if 49.0 <= at < 51.0:  # noqa: PLR2004 (the database's restart)
        failed["UNAVAILABLE: the database"] = picked.total()
        picked.clear()
    slow = slow_hurts and 13.0 <= at < 18.0  # noqa: PLR2004 (the slow pod)
    p50 = chance.uniform(0.002, 0.003)
    return {
        "at": at + STEP,
        "calls": dict(picked),
        "failed": {cause: count for cause, count in failed.items() if count},
        "p50": p50 if picked else None,
        "p99": (0.25 if slow else p50 * chance.uniform(2, 4)) if picked else None,
        "connections": len(pods),
    }


def _phase(
    event: str | None, title: str, start: float, end: float, samples: list[dict[str, Any]]
) -> dict[str, Any]:
    within = [sample for sample in samples if start < sample["at"] <= end]
    calls: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for sample in within:
        calls.update(sample["calls"])
        failed.update(sample["failed"])
    shares = [calls[pod] for pod in _alive((start + end) / 2)]
    return {
        "event": event,
        "title": title,
        "from": start,
        "to": end,
        "calls": calls.total(),
        "jain": jain(shares) if calls else None,
        "p50": max((sample["p50"] for sample in within if sample["p50"]), default=None),
        "p99": max((sample["p99"] for sample in within if sample["p99"]), default=None),
        "failed": dict(failed),
    }


def _first_call(pod: str, samples: list[dict[str, Any]], since: float) -> float | None:
    return next((sample["at"] - since for sample in samples if sample["calls"].get(pod)), None)
