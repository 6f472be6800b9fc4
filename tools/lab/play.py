"""Plays a story on fleets: the same at the same times on each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from services.user.testing_postgresql import PostgreSQL
from tools.lab.fleet.fleet import Fleet
from tools.lab.fleet.pod import Pod
from tools.lab.story import Event, NotServing, Scale, Simple, Slow, Story
from tools.ports import held_port

SETTLE = 1.0
"""Seconds after an event that still belong to it: what follows of it takes that long to be seen."""

_GAP = 2.0
"""Seconds between two events, at least, in which the load is steady."""

_PATIENCE = 60.0
"""Seconds in which a pod recovers from a fault that is over."""


@dataclass
class Happening:
    """An event as it was; times in seconds since the story's start."""

    at: float
    name: str
    title: str
    planned: bool
    until: float | None = None
    """None while it goes on."""


@dataclass
class Stage:
    """Where a story is played."""

    fleets: Sequence[Fleet]
    database: PostgreSQL
    database_port: int
    start: float
    """Seconds since the epoch."""

    happenings: list[Happening] = field(default_factory=list)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.time() - self.start

    @property
    def current(self) -> Happening | None:
        """What goes on."""
        last = self.happenings[-1] if self.happenings else None
        return last if last and last.until is None else None


async def play(story: Story, stage: Stage) -> None:
    """Play a story to its end."""
    end = 0.0
    for event in story.events:
        await asyncio.sleep(max(event.at, end + _GAP) - stage.now)
        name, title, planned = _described(event, stage)
        happening = Happening(stage.now, name, title, planned)
        stage.happenings.append(happening)
        await _do(event, stage)
        await asyncio.sleep(SETTLE)
        happening.until = end = stage.now
    await asyncio.sleep(max(story.until, end + _GAP) - stage.now)


def _described(event: Event, stage: Stage) -> tuple[str, str, bool]:
    """Return an event's name, its title, and whether it is planned: such an event must fail no call."""
    match event:
        case Scale():
            before = len(stage.fleets[0].pods)
            name = "scale-up" if event.pods > before else "scale-down"
            return _once(name, stage), f"scale {before} → {event.pods}", True
        case Slow():
            return _once("slow-pod", stage), "one pod slow", False
        case NotServing():
            return _once("not-serving", stage), "one pod NOT_SERVING", False
        case Simple(do="roll"):
            return _once("rolling-restart", stage), "rolling restart", True
        case Simple(do="kill"):
            return _once("killed", stage), "one pod killed (-9)", False
        case _:
            return _once("database-restart", stage), "database restarted", False


def _once(name: str, stage: Stage) -> str:
    count = sum(each.name.startswith(name) for each in stage.happenings)
    return f"{name}-{count + 1}" if count else name


async def _do(event: Event, stage: Stage) -> None:
    match event:
        case Scale():
            await _everywhere(stage, lambda fleet: fleet.scale(event.pods))
        case Slow():
            await _everywhere(stage, lambda fleet: _slow(fleet.pods[0], event))
        case NotServing():
            await _everywhere(stage, lambda fleet: _not_serving(fleet.pods[0], event, stage))
        case Simple(do="roll"):
            await _everywhere(stage, Fleet.roll)
        case Simple(do="kill"):
            await _everywhere(stage, lambda fleet: _kill(fleet.pods[0]))
        case _:
            await asyncio.to_thread(stage.database.restart)


async def _everywhere(stage: Stage, change: Callable[[Fleet], Awaitable[None]]) -> None:
    await asyncio.gather(*(change(fleet) for fleet in stage.fleets))


async def _slow(pod: Pod, event: Slow) -> None:
    assert pod.database
    pod.database.delay = event.delay
    await asyncio.sleep(event.for_)
    pod.database.delay = 0


async def _not_serving(pod: Pod, event: NotServing, stage: Stage) -> None:
    assert pod.database
    with held_port() as nobody:
        pod.database.move_to(nobody)
        pod.database.cut()
        await asyncio.sleep(event.for_)
        pod.database.move_to(stage.database_port)
    await _until_ready(pod)


async def _kill(pod: Pod) -> None:
    process = pod.pid
    pod.kill()
    await _until(lambda: pod.pid != process, f"{pod.name} has not been started again")
    await _until_ready(pod)


async def _until_ready(pod: Pod) -> None:
    await _until(lambda: pod.ready, f"{pod.name} is not ready again")


async def _until(condition: Callable[[], bool], otherwise: str) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            while not condition():  # noqa: ASYNC110 (the pod tells fleets alone)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise RuntimeError(f"{otherwise} after {_PATIENCE:g} s") from None
