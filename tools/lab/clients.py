"""The processes that make the calls, one a client, in Python and in Go, and what they say."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tools.golang import built
from tools.lab.driver import Plan

_GO = Path(__file__).resolve().parent / "go"

IN_PYTHON: Sequence[str | Path] = (sys.executable, "-m", "tools.lab.driver")


def in_go() -> Sequence[str | Path]:
    """Return the command of the Go client, which is built if need be.

    Raises:
        RuntimeError: it can't be built here; the text says why.

    """
    return (built(_GO, "lab-client"),)


@asynccontextmanager
async def calling(
    name: str,
    command: Sequence[str | Path],
    plan: Plan,
    variables: dict[str, str],
    tell: Callable[[bytes], None],
) -> AsyncIterator[None]:
    """Have a process do a plan until the end of the block, and all answers are there.

    Args:
        name: what the client is called.
        command: of the process.
        plan: what it does.
        variables: of its environment, in addition.
        tell: is given each line that it says: a call.

    Raises:
        RuntimeError: it has failed; stderr says why.

    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # As some launchers keep the paths of modules to themselves.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables,
    )
    assert process.stdin
    assert process.stdout
    reading = asyncio.create_task(_read(process.stdout, tell))
    process.stdin.write(plan.to_line())
    try:
        yield
        process.stdin.close()
        await reading
        if code := await process.wait():
            raise RuntimeError(f"the client {name} has ended with {code}; see above why")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _read(lines: asyncio.StreamReader, tell: Callable[[bytes], None]) -> None:
    async for line in lines:
        tell(line)
