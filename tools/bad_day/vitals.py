"""What a process has: memory, descriptors, threads, tasks, as Linux and the process itself tell it."""

import asyncio
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grpc_common.testing.server import memory

_PATIENCE = 3.0
"""Seconds that a busy process may take until it does what it is asked."""

_TRIES = 4
"""A process that writes the word in which it is asked, at the same moment, does not see that it is."""

_COUNT = """
import asyncio, os
with open({new!r}, "w") as file:
    file.write(str(len(asyncio.all_tasks())))
os.rename({new!r}, {told!r})
"""


@dataclass(frozen=True)
class Vitals:
    """Of a process at one moment."""

    descriptors: int
    threads: int
    tasks: int | None
    """Of asyncio, in all threads; None if the process did not tell, as happens once in some hundred times."""


async def vitals(pid: int) -> Vitals:
    """Return those of a process.

    Raises:
        ProcessLookupError: it has ended.

    """
    tasks = await _tasks(pid)
    try:
        return Vitals(_count(pid, "fd"), _count(pid, "task"), tasks)
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None


def peak_memory(pid: int) -> int:
    """Return the most bytes that a process has had in memory at a time; 0 if it has ended."""
    try:
        return memory(pid, "VmHWM")
    except FileNotFoundError, ProcessLookupError, StopIteration:  # a zombie has no memory
        return 0


def _count(pid: int, what: str) -> int:
    return len(list(Path(f"/proc/{pid}/{what}").iterdir()))


async def _tasks(pid: int) -> int | None:
    """Have the process count its tasks, by PEP 768, and tell it in a file; its loop must turn now and then.

    `python -m asyncio ps` would read its memory instead, and loses its way in grpc.aio's coroutines.
    """
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        told, script = Path(folder, "told"), Path(folder, "count.py")
        script.write_text(_COUNT.format(new=f"{told}.new", told=str(told)), "utf-8")  # noqa: ASYNC240 (few bytes)
        for _ in range(_TRIES):
            _ask(pid, script)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    while not told.exists():  # noqa: ASYNC110, ASYNC240 (another process tells)
                        await asyncio.sleep(0.05)
                return int(told.read_text("utf-8"))  # noqa: ASYNC240 (a few bytes)
    return None


def _ask(pid: int, script: Path) -> None:
    try:
        sys.remote_exec(pid, str(script))
    except (OSError, RuntimeError) as error:
        raise ProcessLookupError(f"process {pid} can't be asked for its tasks: {error}") from None
