"""A million users: seconds and peak memory of their import and of a full list, on each database.

The import of a million takes long, so that a smaller one may stand for it; the rest is then
written into the table directly. All programs are the real ones, on this machine.
"""

import asyncio
import os
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import click
from rich.console import Console
from rich.table import Table

from grpc_common.testing.server import memory
from services.user.testing_postgresql import running_postgresql
from tests.programs import CLIENT, SERVER, Server, environment, running_server

_INSERT = "INSERT INTO users (id, name, email, email_key) VALUES (?, ?, ?, ?)"


def _measure(title: str, server: Server, *arguments: str | Path) -> tuple[int, list[str]]:
    """Run the client; return how many lines it printed, and a row of the table."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak begins anew
    began = time.perf_counter()
    command = [CLIENT, "--target", server.target, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout
        lines = sum(1 for _ in client.stdout)
        _, status, usage = os.wait4(client.pid, 0)
        client.returncode = os.waitstatus_to_exitcode(status)
    if client.returncode:
        raise click.ClickException(f"the client ended with {client.returncode}")
    seconds = time.perf_counter() - began
    peak = memory(server.pid, "VmHWM") / 2**20
    return lines, [title, f"{seconds:.1f} s", f"{peak:.0f} MB", f"{usage.ru_maxrss / 1024:.0f} MB"]


def _rows(first: int, end: int) -> Iterator[tuple[uuid.UUID, str, str, str]]:
    for n in range(first, end):
        email = f"user{n}@example.com"
        yield uuid.uuid7(), f"User {n}", email, email


def _fill(url: str, first: int, end: int) -> None:
    """Write users into the database past the service."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.executemany(_INSERT, ((i.bytes, *texts) for i, *texts in _rows(first, end)))
        connection.close()
        return

    async def copy() -> None:
        connection = await asyncpg.connect(url)
        await connection.copy_records_to_table("users", records=_rows(first, end))
        await connection.close()

    asyncio.run(copy())


def _rows_of(url: str, users: int, imported: int, folder: Path) -> Iterator[list[str]]:
    """Fill one database, and yield what was measured."""
    file = folder / "users.csv"
    lines = (f"{name},{email}\n" for _, name, email, _ in _rows(0, imported))
    file.write_text("name,email\n" + "".join(lines))
    subprocess.run([SERVER, "migrate"], env=environment(url), check=True, capture_output=True)
    with running_server(url) as server:
        yield _measure(f"import of {imported:,}", server, "import", file)[1]
    _fill(url, imported, users)
    with running_server(url) as server:
        lines, row = _measure(f"list of {users:,}", server, "list", "--format", "tsv")
        assert lines == users
        yield row


@click.command(help=__doc__)
@click.option("--users", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--imported", type=click.IntRange(min=1), default=100_000, show_default=True)
def main(users: int, imported: int) -> None:
    """Measure SQLite, then PostgreSQL."""
    table = Table("database", "what", "time", "server's peak memory", "client's")
    with ExitStack() as stack:
        # Not in /tmp, which need not be a disk.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="."))).absolute()
        urls = [f"sqlite:///{folder}/users.db", stack.enter_context(running_postgresql()).url]
        for url in urls:
            for row in _rows_of(url, users, min(imported, users), folder):
                table.add_row(url.partition(":")[0], *row)
    console = Console(width=None if Console().is_terminal else 100)
    console.print(table)


if __name__ == "__main__":
    main(prog_name="million")
