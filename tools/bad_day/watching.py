"""What is seen of a day while it goes on: calls by pod, failures, latencies, memory; once a second."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tools.bad_day.callers import Callers, Sample
from tools.bad_day.record import Record
from tools.bad_day.vitals import peak_memory
from tools.lab.fleet.pod import Pod
from tools.lab.report.live import Live
from tools.pages.percentiles import median_and_p99

_INTERVAL = 1.0
"""Seconds."""

_LONGEST = 0.5
"""Seconds that a pod may take to tell its metrics; one that stands still would tell none."""

NAME = "bad-day"
"""Of the one run of the report."""


@dataclass(frozen=True)
class Seen:
    """What has happened since the time before."""

    at: float
    calls: dict[str, int]
    """By pod, as its metrics say; those of health left out."""

    connections: int
    clients: Sample

    def json(self) -> dict[str, Any]:
        """Return what a report has of it."""
        return {
            "at": self.at,
            "calls": self.calls,
            "failed": dict(self.clients.failed),
            **median_and_p99(self.clients.latencies),
            "connections": self.connections,
        }


class Watch:
    """Looks at pods and clients, and shows it."""

    def __init__(self, pods: Sequence[Pod], callers: Callers, record: Record, live: Live) -> None:
        self.seen: list[Seen] = []
        self._pods, self._callers, self._record, self._live = pods, callers, record, live
        self._totals: Counter[tuple[str, int]] = Counter()
        """Calls that a pod's process has answered, by its name and process id."""

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Look once a second until the block ends."""
        timeout = aiohttp.ClientTimeout(total=_LONGEST)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            ended = asyncio.Event()
            group.create_task(self._look_until(ended, session))
            try:
                yield
            finally:
                ended.set()

    async def _look_until(self, ended: asyncio.Event, session: aiohttp.ClientSession) -> None:
        due = time.monotonic()
        while not ended.is_set():
            seen = await self._look(session)
            self.seen.append(seen)
            self._live.update(seen.at, {NAME: seen.json()}, self._record.now)
            due += _INTERVAL
            await asyncio.sleep(due - time.monotonic())

    async def _look(self, session: aiohttp.ClientSession) -> Seen:
        pods = [pod for pod in self._pods if pod.metrics_port]  # those that have begun to serve
        day = self._record.day
        for pod in pods:
            day.peaks[pod.name] = max(day.peaks.get(pod.name, 0), peak_memory(pod.pid))
        pages = await asyncio.gather(*(_metrics(session, pod) for pod in pods))
        calls = {pod.name: self._new_calls(pod, page) for pod, page in zip(pods, pages, strict=True)}
        connections = sum(_total(page, "grpc_server_connections{") for page in pages)
        sample = await self._callers.sample()
        return Seen(day.ledger.now(), calls, connections, sample)

    def _new_calls(self, pod: Pod, page: str) -> int:
        total = _total(page, "grpc_server_handled_total{", "user.UserService")
        key = pod.name, pod.pid
        new = max(0, total - self._totals[key])
        self._totals[key] += new
        return new


async def _metrics(session: aiohttp.ClientSession, pod: Pod) -> str:
    """Return the page of a pod's metrics; empty if it does not answer."""
    try:
        async with session.get(f"http://{pod.address}:{pod.metrics_port}/metrics") as answer:
            return await answer.text()
    except aiohttp.ClientError, TimeoutError:
        return ""


def _total(page: str, name: str, label: str = "") -> int:
    lines = [line for line in page.splitlines() if line.startswith(name) and label in line]
    return round(sum(float(line.rpartition(" ")[2]) for line in lines))
