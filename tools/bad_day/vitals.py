"""What a process has: memory, descriptors, threads, tasks, as Linux and Python's own tools tell it."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

_RULE = "----"
"""Begins the line below the heading of `python -m asyncio ps`."""


@dataclass(frozen=True)
class Vitals:
    """Of a process at one moment."""

    descriptors: int
    threads: int
    tasks: int
    """Of asyncio, in all threads."""


async def vitals(pid: int) -> Vitals:
    """Return those of a process.

    Raises:
        ProcessLookupError: it has ended.
        RuntimeError: its tasks can't be read; the text says why.

    """
    tasks = await _tasks(pid)
    try:
        threads = _status(pid, "Threads")
        return Vitals(len(list(Path(f"/proc/{pid}/fd").iterdir())), threads, tasks)  # noqa: ASYNC240 (no disk)
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None


def peak_memory(pid: int) -> int:
    """Return the most bytes that a process has had in memory at a time; 0 if it has ended."""
    try:
        return _status(pid, "VmHWM") * 1024
    except FileNotFoundError, ProcessLookupError, StopIteration:  # a zombie has no memory
        return 0


def _status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


async def _tasks(pid: int) -> int:
    """Count a row for each task, however many awaiters it has."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncio", "ps", str(pid)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the tasks of process {pid} can't be read: {errors.decode()[-500:]}")
    _, _, rows = output.decode().partition(_RULE)
    return len({row.split()[1] for row in rows.splitlines()[1:] if row.strip()})
