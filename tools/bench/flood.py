"""What hostile peers do to the user service: its memory, and an honest client's calls meanwhile.

The server is the real one with base's settings, on each engine, anew for each attack. The command
ends with 1 if a limit is broken: the pod's memory, a failed call of the honest client, or
descriptors that the server has not closed afterwards. What is known to break one, since C-core does,
is shown as "known" and is no failure: docs/operations.md, "Hostile peers".
"""

import asyncio
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import click
import grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing import server as processes
from tests.programs import Server, running_server
from tools.bench.attacks import Peers, peers
from tools.pages.output_file import OutputFile, write
from tools.pages.percentiles import percentile

_CONFIG = Path("k8s/base/config.yaml")

ENGINES = ["completion-queue", "grpc-aio"]

_POD_MEMORY = 256
"""MiB: resources.limits.memory of k8s/base/deployment.yaml."""

_SHARES = {name: {"RESOURCE_EXHAUSTED"} for name in ("calls without a message", "answers that nobody reads")}
"""How honest calls may fail all the same: connections of 100 calls each fill max_concurrent_calls, 1000."""

_KNOWN = {
    "headers without end",
    "references",
    "small headers without end",
    "a value without end",
    "a name without end",
    "references without end",
    "static references without end",
}
"""Attacks that C-core has no limit for: their memory, and the calls that fail meanwhile, are no news."""

_CALLERS = 4
_PAUSE = 0.002
"""Seconds between two calls of a caller."""

_DEADLINE = 10
"""Seconds of an honest call."""

_USERS = 300
"""So that the answers that nobody reads are more than the kernel holds."""

_SPARE = 5
"""Descriptors that a server may have more than before: of its database, and of our own client."""

_PATIENCE = 20
"""Seconds that it has for closing what its peers have left."""

_QUIET = "no attack"


@dataclass
class Honest:
    """What a client saw that does nothing wrong."""

    codes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def p99(self) -> float:
        """Seconds that one call in a hundred took, or longer."""
        return percentile(self.seconds, 99)


@dataclass
class Result:
    """What came of one attack."""

    engine: str
    attack: str
    memory: float
    """MiB at the peak."""
    calls: int
    failed: dict[str, int]
    """Honest calls that failed, by their code."""
    p99: float
    """Seconds, of honest calls."""
    descriptors: int
    """More than before, once the server had time to close them."""


def _broken(result: Result, most_memory: int) -> list[str]:
    """Return the limits that were broken."""
    unexpected = result.failed.keys() - _SHARES.get(result.attack, set())
    limits = {
        f"memory: {result.memory:.0f} of {most_memory} MiB": result.memory > most_memory,
        f"honest calls failed: {', '.join(sorted(unexpected))}": bool(unexpected),
        f"descriptors: {result.descriptors} more than before": result.descriptors > _SPARE,
    }
    return [text for text, is_broken in limits.items() if is_broken]


def _is_known(result: Result) -> bool:
    return result.attack in _KNOWN and result.descriptors <= _SPARE


@asynccontextmanager
async def _honest_client(target: str, user: str) -> AsyncIterator[Honest]:
    """Call all the time; the calls that are under way when the block ends count, too."""
    honest = Honest()
    is_over = False

    async def work(stub: UserServiceStub) -> None:
        while not is_over:
            began = time.perf_counter()
            call = stub.GetUser(pb.GetUserRequest(id=user), timeout=_DEADLINE)
            honest.codes[(await call.code()).name] += 1
            honest.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE)

    options = [("grpc.use_local_subchannel_pool", 1)]  # or it has the connection of the one before
    async with grpc.aio.insecure_channel(target, options) as channel, asyncio.TaskGroup() as workers:
        stub = UserServiceStub(channel)
        await stub.GetUser(pb.GetUserRequest(id=user), timeout=_DEADLINE, wait_for_ready=True)
        for _ in range(_CALLERS):
            workers.create_task(work(stub))
        try:
            yield honest
        finally:
            is_over = True


class _Service(NamedTuple):
    """A server with users."""

    engine: str
    server: Server
    user: str
    """The id of one."""

    def descriptors(self) -> int:
        """Return how many it has open."""
        return len(list(Path(f"/proc/{self.server.pid}/fd").iterdir()))

    def begin_peak(self) -> None:
        """Forget the most memory that it has had: proc_pid_clear_refs(5)."""
        Path(f"/proc/{self.server.pid}/clear_refs").write_text("5")

    def peak(self) -> float:
        """Return the most memory that it has had, in MiB."""
        return processes.memory(self.server.pid, "VmHWM") / 2**20

    def left_over(self, before: int) -> int:
        """Return how many descriptors it has more, once it had time to close them."""
        end = time.monotonic() + _PATIENCE
        while (more := self.descriptors() - before) > _SPARE and time.monotonic() < end:
            time.sleep(0.05)
        return more


async def _attacked(service: _Service, attack: str, hostile: Peers, seconds: float) -> Honest:
    async with _honest_client(service.server.target, service.user) as honest:
        if attack == _QUIET:
            await asyncio.sleep(seconds)
        else:
            port = int(service.server.target.rpartition(":")[2])
            await asyncio.to_thread(hostile.play, attack, port, seconds)
    return honest


def _measure(service: _Service, attack: str, hostile: Peers, seconds: float) -> Result:
    before = service.descriptors()
    service.begin_peak()
    honest = asyncio.run(_attacked(service, attack, hostile, seconds))
    return Result(
        engine=service.engine,
        attack=attack,
        memory=service.peak(),
        calls=honest.codes.total(),
        failed={code: count for code, count in honest.codes.items() if code != "OK"},
        p99=honest.p99,
        descriptors=service.left_over(before),
    )


def _fill(server: Server) -> str:
    """Create users, and return the id of one."""
    with server.channel() as channel:
        create = UserServiceStub(channel).CreateUser
        calls = [
            create.future(pb.CreateUserRequest(name="x" * 100, email=f"user{n}@example.com"))
            for n in range(_USERS)
        ]
        users = [call.result(_PATIENCE) for call in calls]
    return users[0].id


@contextmanager
def _serving(engine: str) -> Iterator[_Service]:
    """Run a server with base's settings."""
    variables = {"CONFIG_FILE": str(_CONFIG.absolute()), "ENGINE": engine, "LOGGING_FORMAT": "console"}
    with (
        tempfile.TemporaryDirectory(dir=".") as folder,  # not in /tmp, which need not be a disk
        running_server(Path(folder).absolute() / "users.db", **variables) as server,
    ):
        yield _Service(engine, server, _fill(server))


def _run(engines: Iterable[str], attacks: list[str], hostile: Peers, seconds: float) -> Iterator[Result]:
    for engine, attack in itertools.product(engines, attacks):
        with _serving(engine) as service:
            yield _measure(service, attack, hostile, seconds)


def _table(results: list[tuple[Result, list[str]]]) -> Table:
    table = Table("engine", "attack", "memory", "honest calls", "failed", "p99", "descriptors left", "")
    for result, broken in results:
        table.add_row(
            result.engine,
            result.attack,
            f"{result.memory:.0f} MiB",
            f"{result.calls}",
            f"{sum(result.failed.values())}",
            f"{result.p99 * 1000:.0f} ms",
            f"{max(result.descriptors, 0)}",
            ("known: " if broken and _is_known(result) else "") + "; ".join(broken) or "ok",
        )
    return table


@click.command(help=__doc__)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Of each attack; what was begun is finished.",
)
@click.option("--engine", "engines", type=click.Choice(ENGINES), multiple=True, default=ENGINES)
@click.option(
    "--attack", "attacks", multiple=True, metavar="NAME", help="Only this one, as the table has it."
)
@click.option(
    "--memory", type=click.IntRange(min=1), default=_POD_MEMORY, show_default=True, help="MiB of a pod."
)
@click.option("--json", "file", type=OutputFile(), help="Where to write the figures; times are in seconds.")
def main(
    seconds: float, engines: tuple[str, ...], attacks: tuple[str, ...], memory: int, file: Path | None
) -> None:
    """Play all attacks, print the table, and write the file."""
    with peers() as hostile:
        if unknown := set(attacks) - set(hostile.names):
            text = f"there is no attack {', '.join(sorted(unknown))}; these are: {', '.join(hostile.names)}"
            raise click.UsageError(text)
        chosen = [_QUIET, *(attacks or hostile.names)]
        running = _run(engines, chosen, hostile, seconds)
        total = len(engines) * len(chosen)
        progress = track(running, "attacking", total=total, console=Console(stderr=True))
        results = [(result, _broken(result, memory)) for result in progress]
    Console(width=None if Console().is_terminal else 160).print(_table(results))
    if file:
        figures = [
            asdict(result) | {"broken": broken, "known": _is_known(result)} for result, broken in results
        ]
        write(file, json.dumps({"seconds": seconds, "memory": memory, "results": figures}, indent=2))
    if any(broken and not _is_known(result) for result, broken in results):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main(prog_name="flood")
