"""Compares where SQLite may run: on the event loop, in one thread, or in two as it does.

One task creates users, each on the disk before the next; others read single users as fast as
they can. A stalled event loop is what all other calls of the process would feel.
"""

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from rich.bar import Bar
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.user.storage import UserStorage
from services.user.storage import sqlite as storage
from services.user.users import new_user

READERS = 4

BUSY_TIMEOUT = 5.0
"""Seconds that a write waits for another one's."""


class _OnEventLoop(storage.Connection):
    """A connection without a thread: whoever waits for it, all wait."""

    async def _in_thread[Result](self, work: Callable[[], Result]) -> Result:
        return work()


# (its name, the class of its connections, how many it has)
WAYS = [
    ("on the event loop", _OnEventLoop, 1),
    ("one thread", storage.Connection, 1),
    ("two threads", storage.Connection, 2),
]


@dataclass
class Figures:
    """What was counted in one round."""

    reads: float
    """Users read a second, by all readers."""

    creates: float
    """Users created a second."""

    stall: float
    """The longest that the event loop did not run, in seconds."""


async def _measure(connection_class: type[storage.Connection], count: int, seconds: float) -> Figures:
    async with AsyncExitStack() as stack:
        # Not in /tmp, which need not be a disk.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=".")))
        path = folder / "users.db"
        await stack.enter_async_context(storage.open_sqlite(path, BUSY_TIMEOUT))
        connections = [
            await stack.enter_async_context(connection_class(path, BUSY_TIMEOUT)) for _ in range(count)
        ]
        users = storage.SqliteUserStorage(connections[0], connections[-1], path)
        return await _load(users, seconds)


async def _load(users: UserStorage, seconds: float) -> Figures:
    first = new_user("first", "first@example.com")
    await users.create(first)
    end = time.perf_counter() + seconds
    reads = creates = 0
    stall = 0.0

    async def read() -> None:
        nonlocal reads
        while not reads or time.perf_counter() < end:
            await users.get(first.id)
            reads += 1
            await asyncio.sleep(0)

    async def create() -> None:
        nonlocal creates
        while not creates or time.perf_counter() < end:
            await users.create(new_user("user", f"user-{creates}@example.com"))
            creates += 1
            await asyncio.sleep(0)

    async def watch() -> None:
        nonlocal stall
        while (before := time.perf_counter()) < end:
            await asyncio.sleep(0)
            stall = max(stall, time.perf_counter() - before)

    await asyncio.gather(create(), watch(), *(read() for _ in range(READERS)))
    return Figures(reads / seconds, creates / seconds, stall)


def _medians(rounds: Iterable[Figures]) -> Figures:
    columns = zip(*((one.reads, one.creates, one.stall) for one in rounds), strict=True)
    return Figures(*map(statistics.median, columns))


def _table(results: dict[str, Figures]) -> Table:
    table = Table("way", "reads/s", "", "", "creates/s", "", "longest stall")
    base = next(iter(results.values()))
    most = max(figures.reads for figures in results.values())
    for name, figures in results.items():
        table.add_row(
            name,
            f"{figures.reads:,.0f}",
            f"{figures.reads / base.reads:.1f}x",
            Bar(most, 0, figures.reads, width=20),
            f"{figures.creates:,.0f}",
            f"{figures.creates / base.creates:.1f}x",
            f"{figures.stall * 1000:.1f} ms",
        )
    return table


@click.command(help=__doc__)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Medians are shown.")
def main(seconds: float, rounds: int) -> None:
    """Measure each way in turn, again and again, so that a busy moment hits all."""
    figures: dict[str, list[Figures]] = {name: [] for name, _, _ in WAYS}
    turns = [way for _ in range(rounds) for way in WAYS]
    for name, connection_class, count in track(turns, console=Console(stderr=True), description="measuring"):
        figures[name].append(asyncio.run(_measure(connection_class, count, seconds)))
    console = Console(width=None if Console().is_terminal else 100)
    console.print(f"{READERS} readers and 1 writer, SQLite {sqlite3.sqlite_version}, {rounds} x {seconds} s")
    console.print(_table({name: _medians(rounds) for name, rounds in figures.items()}))


if __name__ == "__main__":
    main(prog_name="storage")
