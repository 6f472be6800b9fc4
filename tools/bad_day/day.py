"""A bad day from its beginning to its end: load, storms, recoveries, planned events, and what came of it."""

import asyncio
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from user.user_service_pb2_grpc import UserServiceStub

from services.user.testing_listing import all_users
from tests.programs import PATIENCE
from tools.bad_day.callers import Callers
from tools.bad_day.clients import DEADLINE
from tools.bad_day.faults import EVENTS, FAULTS, until_ready
from tools.bad_day.invariants import RECOVERY, Day, Window
from tools.bad_day.plan import KINDS, ROUND, Fault, Round
from tools.bad_day.record import Record
from tools.bad_day.stack import Stack, running_stack
from tools.bad_day.vitals import vitals
from tools.bad_day.watching import Seen, Watch
from tools.lab.fleet.pod import Pod
from tools.lab.report.live import Live

_STEADY = DEADLINE + 1
"""Seconds of load before the first fault, and after each planned event, in which a call that hangs fails."""

QUIET = "before the first fault"
"""What happens in the first calm time."""

_AT_REST = 3.0
"""Seconds after the last call in which what it has used is given back."""


@dataclass
class Outcome:
    """All that is known of a day."""

    record: Record
    seen: Sequence[Seen] = ()
    pods: dict[Pod, list[float]] = field(default_factory=dict)
    """When each pod began to run, and when it ended, in seconds since the day began."""


def duration(rounds: Sequence[Round]) -> float:
    """Return the seconds that a day takes, about."""
    return _STEADY + len(rounds) * ROUND


async def bad_day(rounds: Sequence[Round], seed: int, engine: str, live: Live) -> Outcome:
    """Live through the rounds; return what was seen.

    SIGTERM cancels it, as Ctrl-C does.

    Raises:
        RuntimeError: a program has not started, or the clients have ended; the text says more.

    """
    task = asyncio.current_task()
    assert task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with running_stack(engine) as stack:
        outcome = Outcome(record := Record())
        day = record.day
        async with Callers.running(stack.ways, day.ledger.start, seed) as callers:
            processes = _processes(stack.pods) | {"clients": callers.pid}
            day.first = {name: await vitals(pid) for name, pid in processes.items()}
            _follow_pods(stack, outcome)
            await callers.begin()
            watch = Watch(stack.fleet.pods, callers, record, live)
            async with watch.looking():
                await asyncio.sleep(_STEADY)
                day.calm.append(Window(None, 0.0, day.ledger.now(), QUIET))
                for each in rounds:
                    await _storm(stack, each.faults, record)
                    await _calm(stack, each.planned, record)
            outcome.seen = watch.seen
            day.ledger = await callers.end()
            await asyncio.sleep(_AT_REST)
            await _look(day, "", _processes(stack.pods) | {"clients": callers.pid})
        async with stack.ways.channels() as channels:
            stub = UserServiceStub(channels["kubernetes"])
            day.users = await all_users(stub, 10 * DEADLINE, wait_for_ready=True)
    return outcome


def _follow_pods(stack: Stack, outcome: Outcome) -> None:
    outcome.pods = {pod: [0.0] for pod in stack.fleet.pods}

    def changed(pod: Pod, change: str) -> None:
        now = outcome.record.day.ledger.now()
        if change == "ended" and pod in outcome.pods:
            outcome.pods[pod].append(now)
        else:
            outcome.pods.setdefault(pod, [now])

    stack.fleet.subscribe(changed)


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
    last_fault = ledger.now()
    await asyncio.sleep(RECOVERY)
    began = ledger.now()
    day.unrecovered += await _not_ready(stack)
    await _look(day, f" of {began:.0f} s", _processes(stack.pods))
    with record.event(planned, planned, planned=True):
        await EVENTS[planned](stack)
    await asyncio.sleep(_STEADY)
    day.calm.append(Window(last_fault, began, ledger.now(), planned))


async def _not_ready(stack: Stack) -> list[str]:
    """Wait until all pods are ready, as a rollout does; return what is said of those that are not."""
    try:
        await asyncio.wait_for(asyncio.gather(*(until_ready(pod) for pod in stack.pods)), PATIENCE)
    except TimeoutError:
        return [f"{pod.name} is not ready" for pod in stack.pods if not pod.ready]
    return []


def _processes(pods: Sequence[Pod]) -> dict[str, int]:
    return {f"pod {pod.name}": pod.pid for pod in pods}


async def _look(day: Day, when: str, processes: Mapping[str, int]) -> None:
    """Write down what processes have at a time when all of them are there."""
    for name, pid in processes.items():
        try:
            day.last[f"{name}{when}"] = await vitals(pid)
        except ProcessLookupError as error:
            day.unrecovered.append(f"{name}{when}: {error}")
