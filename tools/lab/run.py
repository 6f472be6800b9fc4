"""One run of the lab: fleets, clients and the story, and the report that is made of them."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from services.user.testing_postgresql import PostgreSQL
from tools.lab import clients
from tools.lab.calls import Record
from tools.lab.driver import Client, Plan
from tools.lab.figures import STEP, PodLife, Run, events
from tools.lab.fleet.api import Api
from tools.lab.fleet.fleet import Fleet
from tools.lab.fleet.pod import Pod, Timing
from tools.lab.play import Stage, play
from tools.lab.report.live import Live
from tools.lab.story import Story
from tools.lab.strategies import Strategy

type Apis = Callable[[], AbstractAsyncContextManager[Api]]
"""Runs an API server, or a part of one, for one fleet."""

_CONFIG = Path("k8s/base/config.yaml").absolute()

_AGE = 30.0
"""max_connection_age of k8s/base/config.yaml; with a shorter one all times of the cluster are shorter."""

_USERS = 100
"""That GetUser asks for."""

_LAG = 1.0
"""Seconds after which the live table takes a call for answered."""

_PATIENCE = 60.0
"""Seconds in which every client has its first answer."""


def timing(story: Story) -> Timing:
    """Return the times of k8s/base/deployment.yaml; as much shorter as the story has its connections."""
    scale = min(1.0, story.max_connection_age / _AGE)
    return Timing(
        probe_period=5 * scale,
        probe_timeout=max(1.0, 3 * scale),
        pre_stop=5 * scale,
        termination_grace=_drain_grace(story) + 5 * scale + 10,
        dns_ttl=max(1, round(5 * scale)),
    )


def _drain_grace(story: Story) -> float:
    """Return what a server that ends waits for its clients: README of grpc_common, from 1.1 ages on."""
    return 1.2 * story.max_connection_age + 1


def variables(story: Story, *, ages: bool) -> dict[str, str]:
    """Return the environment of the pods; those of which connections do not age keep them for a day."""
    return {
        "CONFIG_FILE": str(_CONFIG),
        "KEEPALIVE_MAX_CONNECTION_AGE": f"{story.max_connection_age}s" if ages else "24h",
        "DRAIN_GRACE": f"{_drain_grace(story)}s",
        # And one for the probe: two fleets of six pods, and as many that end, may have 97 of PostgreSQL's.
        "DATABASE_POOL_SIZE": "3",
        # The log tells the trace id of a call, which its client chooses. None is sampled, and none is sent.
        "TRACING_ENABLED": "true",
    }


@dataclass
class _Playing:
    """A fleet while the story is played, and when its pods took calls."""

    fleet: Fleet
    lives: dict[str, PodLife]
    start: float = 0.0
    follows: bool = True

    def begin(self, start: float) -> None:
        """Let all times be since `start`; the pods that there are were always ready."""
        self.start = start
        self.lives |= {pod.name: PodLife(pod.name, pod.address, 0.0) for pod in self.fleet.pods}
        self.fleet.subscribe(self._changed)

    def _changed(self, pod: Pod, change: str) -> None:
        at = time.time() - self.start
        if not self.follows:
            return
        if change == "ready":
            self.lives.setdefault(pod.name, PodLife(pod.name, pod.address, at))
        elif change == "terminating" and pod.name in self.lives:
            self.lives[pod.name].left = at
        elif change == "ended" and pod.name in self.lives:
            self.lives[pod.name].end = at


class Lab:
    """Strategies that are played at the same time, over one PostgreSQL."""

    def __init__(
        self, story: Story, strategies: Sequence[Strategy], database: PostgreSQL, apis: Apis
    ) -> None:
        self._story = story
        self._strategies = dict(enumerate(strategies, 1))
        self._database = database
        self._apis = apis
        self._record = Record()
        self._stack = AsyncExitStack()
        self._fleets: dict[bool, _Playing] = {}
        """By whether their connections age."""
        self._clients: dict[int, Client] = {}
        """Of the strategies that can be played here."""
        self._skipped: list[dict[str, str]] = []

    async def play(self, title: str) -> dict[str, Any]:
        """Play the story, show how it goes, and return the report.

        Args:
            title: what the story is called.

        SIGTERM cancels it, as Ctrl-C does.

        Raises:
            RuntimeError: something did not start, or has failed; the text says what.

        """
        task = asyncio.current_task()
        assert task
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        started = datetime.now(UTC)
        async with self._stack:
            await self._start_fleets()
            await self._open()
            async with AsyncExitStack() as calling:
                await self._call(calling)
                await self._until_all_are_answered()
                stage = self._begin()
                await self._play_and_show(stage)
                duration = stage.now
                for each in self._fleets.values():
                    each.follows = False
        return self._report(title, started, stage, duration)

    async def _start_fleets(self) -> None:
        # One after the other: both migrate the same database.
        for ages in {strategy.ages for strategy in self._strategies.values()}:
            running = Fleet.running(
                self._story.pods,
                database=self._database.url,
                variables=variables(self._story, ages=ages),
                timing=timing(self._story),
                api=self._apis(),
            )
            fleet = await self._stack.enter_async_context(running)
            fleet.read_logs(self._record.read_log)
            self._fleets[ages] = _Playing(fleet, {})

    async def _open(self) -> None:
        """Run what stands between the clients and the fleets."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lab-")))
        for number, strategy in self._strategies.items():
            (own := folder / strategy.name).mkdir()
            fleet = self._fleets[strategy.ages].fleet
            try:
                if strategy.in_go:
                    await asyncio.to_thread(clients.in_go)
                fields = await self._stack.enter_async_context(strategy.opened(own, fleet, self._story))
            except (RuntimeError, pytest.skip.Exception) as reason:
                skipped = {"name": strategy.name, "title": strategy.title, "why": str(reason)}
                self._skipped.append(skipped)
            else:
                self._clients[number] = Client(number, **fields)
        if not self._clients:
            raise RuntimeError("; ".join(f"{each['name']}: {each['why']}" for each in self._skipped))

    async def _call(self, calling: AsyncExitStack) -> None:
        """Start the processes of the clients; they end with `calling`."""
        ids = await self._users()
        aged = self._fleets.get(True)  # that of all clients with kubernetes:///
        environment = {"GRPC_VERBOSITY": "NONE"}
        if aged:
            environment["KUBECONFIG"] = str(aged.fleet.api.kubeconfig)
        for number, client in self._clients.items():
            strategy = self._strategies[number]
            command = clients.in_go() if strategy.in_go else clients.IN_PYTHON
            plan = Plan(client, self._story.rate, ids)
            running = clients.calling(strategy.name, command, plan, environment, self._record.add)
            await calling.enter_async_context(running)

    async def _users(self) -> list[str]:
        """Create the users that GetUser asks for; return their ids."""
        pod = next(iter(self._fleets.values())).fleet.pods[0]
        async with grpc.aio.insecure_channel(pod.target) as channel:
            stub = UserServiceStub(channel)
            requests = (
                pb.CreateUserRequest(name=f"user {number}", email=f"user{number}@example.com")
                for number in range(_USERS)
            )
            return [(await stub.CreateUser(request)).id for request in requests]

    async def _until_all_are_answered(self) -> None:
        end = time.monotonic() + _PATIENCE
        while silent := [number for number in self._clients if not self._has_answer(number)]:
            if time.monotonic() > end:
                told = ", ".join(self._without_success(number) for number in silent)
                raise RuntimeError(f"no call has succeeded within {_PATIENCE:g} s: {told}")
            await asyncio.sleep(0.05)

    def _without_success(self, number: int) -> str:
        """Return the name of a client, and how its last call ended."""
        calls = list(self._record.of(number).made.values())
        last = f"{calls[-1].code}: {calls[-1].details}" if calls else "it has made no call"
        return f"{self._strategies[number].name} ({last})"

    def _has_answer(self, number: int) -> bool:
        calls = self._record.of(number)
        return any(not call.failed for call in calls.made.values()) and bool(calls.attempts)

    def _begin(self) -> Stage:
        port = urlsplit(self._database.url).port
        assert port
        stage = Stage([each.fleet for each in self._fleets.values()], self._database, port, time.time())
        for each in self._fleets.values():
            each.begin(stage.start)
        return stage

    async def _play_and_show(self, stage: Stage) -> None:
        names = [self._strategies[number].name for number in self._clients]
        with Live("lab", self._story.until, names) as live:
            showing = asyncio.create_task(self._show(live, stage))
            try:
                await play(self._story, stage)
            finally:
                showing.cancel()
                await asyncio.wait([showing])

    async def _show(self, live: Live, stage: Stage) -> None:
        shown = 0.0
        while True:
            await asyncio.sleep(STEP)
            end = (stage.now - _LAG) // STEP * STEP
            for at in (shown + STEP * step for step in range(1, round((end - shown) / STEP) + 1)):
                newest = {
                    self._strategies[number].name: next(self._run(number, stage, at).samples(at, at - STEP))
                    for number in self._clients
                }
                current = stage.current
                live.update(stage.now, newest, current.title if current else None)
            shown = max(shown, end)

    def _run(self, number: int, stage: Stage, duration: float) -> Run:
        lives = self._fleets[self._strategies[number].ages].lives
        return Run(self._record.of(number), stage.start, duration, stage.happenings, list(lives.values()))

    def _report(self, title: str, started: datetime, stage: Stage, duration: float) -> dict[str, Any]:
        runs = []
        for number in self._clients:
            strategy = self._strategies[number]
            names = {"name": strategy.name, "title": strategy.title, "about": strategy.about, "events": None}
            runs.append(names | self._run(number, stage, duration).report())
        return {
            "version": 1,
            "kind": "lab",
            "title": "How clients reach the pods of a Service",
            "setting": self._setting(title, started),
            "events": events(stage.happenings),
            "runs": runs,
            "skipped": self._skipped,
        }

    def _setting(self, title: str, started: datetime) -> dict[str, Any]:
        return {
            "story": title,
            "started": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Python": platform.python_version(),
            "grpcio": version("grpcio"),
            "database": self._database.version,
            "API server": next(iter(self._fleets.values())).fleet.api.name,
            "cores": os.cpu_count(),
            "calls a second, each": self._story.rate,
            "max_connection_age": f"{self._story.max_connection_age:g} s",
            "preStop": f"{timing(self._story).pre_stop:g} s",
            "readiness probe every": f"{timing(self._story).probe_period:g} s",
        }
