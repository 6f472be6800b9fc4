"""A bad day from its beginning to its end: load, storms, recoveries, planned events, and what came of it."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from tools.bad_day.callers import Callers
from tools.bad_day.clients import all_users
from tools.bad_day.faults import EVENTS, FAULTS
from tools.bad_day.invariants import RECOVERY, Day, Window
from tools.bad_day.plan import KINDS, Fault, Round
from tools.bad_day.stack import Stack, running_stack
from tools.bad_day.vitals import Vitals, peak_memory, vitals

_STEADY = 5.0
"""Seconds of load before the first fault, and after each planned event."""

_AT_REST = 3.0
"""Seconds after the last call in which what it has used is given back."""


@dataclass(frozen=True)
class Happened:
    """A fault or a planned event, with the times at which it really was, in seconds."""

    name: str
    title: str
    at: float
    until: float
    planned: bool


@dataclass
class Record:
    """What is written down while the day goes on."""

    day: Day
    say: Callable[[str], None]
    """Tells who looks on."""

    happened: list[Happened] = field(default_factory=list)

    @contextmanager
    def event(self, name: str, title: str, *, planned: bool) -> Iterator[None]:
        """Write down what happens in the block, and what it raises."""
        began = self.day.ledger.now()
        self.say(f"{began:6.1f} s  {title}")
        try:
            yield
        except Exception as error:  # noqa: BLE001 (a fault that can't be brought about is no fault of the service)
            self.day.unrecovered.append(f"{title} of {began:.1f} s failed: {error!r}")
        finally:
            self.happened.append(Happened(name, title, began, self.day.ledger.now(), planned))


async def bad_day(rounds: Sequence[Round], seed: int, engine: str, say: Callable[[str], None]) -> Record:
    """Live through the rounds; return what was seen."""
    async with running_stack(engine) as stack:
        record = Record(Day(), say)
        day = record.day
        async with Callers.running(stack.ways, day.ledger.start, seed) as callers:
            day.first = await _vitals(stack, callers)
            await callers.begin()
            async with _peaks(stack, day):
                await asyncio.sleep(_STEADY)
                for each in rounds:
                    await _storm(stack, each.faults, record)
                    await _calm(stack, each.planned, record)
            day.ledger = await callers.end()
            await asyncio.sleep(_AT_REST)
            day.last = await _vitals(stack, callers)
        async with stack.ways.channels() as channels:
            day.users = await all_users(channels["kubernetes"])
    return record


async def _storm(stack: Stack, faults: Sequence[Fault], record: Record) -> None:
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def happen(fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        async with locks[KINDS[fault.kind].resource]:
            with record.event(fault.kind, f"{fault.kind} {fault.argument}", planned=False):
                await FAULTS[fault.kind](stack, fault)

    async with asyncio.TaskGroup() as storm:
        for fault in faults:
            storm.create_task(happen(fault))


async def _calm(stack: Stack, planned: str, record: Record) -> None:
    """Give it time to recover, and then do what is planned; from then on nothing may fail."""
    ledger, day = record.day.ledger, record.day
    await asyncio.sleep(RECOVERY)
    began = ledger.now()
    day.unrecovered += [f"{pod.name} is not ready" for pod in stack.pods if not pod.ready]
    with record.event(planned, planned, planned=True):
        await EVENTS[planned](stack)
    await asyncio.sleep(_STEADY)
    day.calm.append(Window(began, ledger.now(), planned))


@asynccontextmanager
async def _peaks(stack: Stack, day: Day) -> AsyncIterator[None]:
    """Look at the memory of each server once a second."""

    async def look() -> None:
        while True:
            for pod in stack.fleet.pods:
                day.peaks[pod.name] = max(day.peaks.get(pod.name, 0), peak_memory(pod.pid))
            await asyncio.sleep(1)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()


async def _vitals(stack: Stack, callers: Callers) -> dict[str, Vitals]:
    pids = {f"pod {pod.name}": pod.pid for pod in stack.pods} | {"clients": callers.pid}
    return {name: await vitals(pid) for name, pid in pids.items()}
