"""How each kind of fault, and each planned event, is brought about."""

import asyncio
from collections.abc import Awaitable, Callable

from tools.bad_day.plan import Fault
from tools.bad_day.stack import PODS, Stack


async def _pod_killed(stack: Stack, fault: Fault) -> None:
    stack.pod(fault.argument).kill()


async def _pod_stopped(stack: Stack, fault: Fault) -> None:
    pod = stack.pod(fault.argument)
    pod.stop()
    await _lasts(fault)
    pod.cont()


async def _database_restarted(stack: Stack, fault: Fault) -> None:
    await stack.database.restart(fault.argument)


FAULTS: dict[str, Callable[[Stack, Fault], Awaitable[None]]] = {
    "pod-killed": _pod_killed,
    "pod-stopped": _pod_stopped,
    "database-restarted": _database_restarted,
}
"""By kind, as in a plan; each returns when the fault is over."""


async def _rolling_restart(stack: Stack) -> None:
    await stack.fleet.roll()


async def _scale(stack: Stack) -> None:
    await stack.fleet.scale(PODS + 2)
    await stack.fleet.scale(PODS)


EVENTS: dict[str, Callable[[Stack], Awaitable[None]]] = {
    "rolling-restart": _rolling_restart,
    "scale-up-and-down": _scale,
}
"""The planned ones."""


async def _lasts(fault: Fault) -> None:
    await asyncio.sleep(fault.until - fault.at)
