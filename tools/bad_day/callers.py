"""The clients of a bad day in a process of their own, whose memory and descriptors are theirs alone."""

import asyncio
import multiprocessing
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import grpc
from user import user_service_pb2 as pb

import grpc_common
from grpc_common.observe.logs import set_level
from tools.bad_day.clients import Client
from tools.bad_day.ledger import Ledger

_PATIENCE = 60.0
"""Seconds for the first connection, on a machine that does much else."""

_TICK = 0.1
"""Seconds."""

_WARMING = 2.0
"""Seconds of calls before the first look at what the process has at rest."""


@dataclass(frozen=True)
class Ways:
    """How clients get to the service."""

    kubeconfig: str
    targets: Mapping[str, str]
    """Of grpc_common's channels, by the client's name."""

    envoy: str
    certificates: Path
    """The clients' tls.crt, tls.key and ca.crt."""

    server_name: str

    @asynccontextmanager
    async def channels(self) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
        """Yield a channel for each way, by name."""
        os.environ["KUBECONFIG"] = self.kubeconfig
        service = pb.DESCRIPTOR.services_by_name["UserService"]
        config = grpc_common.ChannelConfig(service=grpc_common.ServiceConfig.for_services(service))
        tls = grpc_common.ClientTLS(self.certificates, self.server_name)
        async with AsyncExitStack() as stack:
            opened = {
                name: grpc_common.channel(target, tls=tls, config=config, ready_timeout=_PATIENCE)
                for name, target in self.targets.items()
            }
            channels = {name: await stack.enter_async_context(each) for name, each in opened.items()}
            envoy = await stack.enter_async_context(grpc.aio.insecure_channel(self.envoy))
            yield channels | {"envoy": envoy}


@dataclass(frozen=True)
class Sample:
    """What has happened since the one before."""

    failed: Mapping[str, int]
    """Calls by code."""

    latencies: Sequence[float]
    """Seconds of those that succeeded, the shortest first."""


class Callers:
    """The process, as its parent sees it."""

    def __init__(self, pid: int, pipe: Connection) -> None:
        self.pid = pid
        self._pipe = pipe

    @classmethod
    @asynccontextmanager
    async def running(cls, ways: Ways, start: float, seed: int) -> AsyncIterator[Callers]:
        """Run the process, which has made some calls and is at rest when the block begins."""
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_run, args=(theirs, ways, start, seed), daemon=True
        )
        process.start()
        theirs.close()
        assert process.pid
        try:
            callers = cls(process.pid, ours)
            await callers._answer("warm up")
            yield callers
        finally:
            process.kill()
            process.join()

    async def begin(self) -> None:
        """Have the clients call from now on."""
        await self._ask("begin")

    async def sample(self) -> Sample:
        """Return what they have seen since the last time."""
        return cast("Sample", await self._ask("sample"))

    async def end(self) -> Ledger:
        """Have them call no more; return the ledger once each create with a key is acknowledged."""
        return cast("Ledger", await self._ask("end"))

    async def _ask(self, order: str) -> object:
        with suppress(BrokenPipeError):  # then there is no answer either
            self._pipe.send(order)
        return await self._answer(order)

    async def _answer(self, order: str) -> object:
        try:
            return await asyncio.to_thread(self._pipe.recv)
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"the clients' process has ended when it was to {order}") from error


def _run(pipe: Connection, ways: Ways, start: float, seed: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    # C-core's lines about each handshake that fails belong into nobody's table.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    set_level("error")
    asyncio.run(_obey(pipe, ways, Ledger(start), seed))


async def _tick(ledger: Ledger) -> None:
    """Write down when the loop stands still; and turn it, so that a process at rest can count its tasks."""
    while True:
        due = ledger.now() + _TICK
        await asyncio.sleep(_TICK)
        if ledger.now() > due + _TICK:
            ledger.stalls.append((due, ledger.now()))


async def _obey(pipe: Connection, ways: Ways, ledger: Ledger, seed: int) -> None:
    ticking = asyncio.create_task(_tick(ledger))
    async with _calling(ways, ledger, seed, "warm"):
        await asyncio.sleep(_WARMING)
    pipe.send("at rest")
    assert await asyncio.to_thread(pipe.recv) == "begin"
    async with _calling(ways, ledger, seed, "day"):
        pipe.send("begun")
        seen = len(ledger.failed)
        while await asyncio.to_thread(pipe.recv) == "sample":
            failed = [made.code for made in ledger.failed[seen:]]
            seen += len(failed)
            pipe.send(Sample({code: failed.count(code) for code in failed}, ledger.take()))
    pipe.send(ledger)
    await ticking  # at rest, until the parent has looked


@asynccontextmanager
async def _calling(ways: Ways, ledger: Ledger, seed: int, when: str) -> AsyncIterator[None]:
    """Have all clients call for the block; the names of their users begin with `when`."""
    ended = asyncio.Event()
    async with ways.channels() as channels:
        clients = [
            Client(name, channel, ledger, random.Random(f"{seed} {name}"), f"{when}-{name}")  # noqa: S311 (as the plan's)
            for name, channel in channels.items()
        ]
        async with asyncio.TaskGroup() as callers:
            for client in clients:
                callers.create_task(client.run(ended))
            try:
                yield
            finally:
                ended.set()
