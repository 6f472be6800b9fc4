"""A client of grpc-go, as a process of its own, that the ledger hears of."""

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.rollout.certificates import NAME
from tests.rollout.ledger import Ledger
from tests.rollout.proof import AGE, SLOW

_NAME = "go"


@asynccontextmanager
async def go_client(program: Path, target: str, certificates: Path, ledger: Ledger) -> AsyncIterator[None]:
    """Call `target` until the block ends, and wait for the last answers.

    Args:
        program: what is built of the folder `go`.
        target: as grpc-go dials it.
        certificates: the directory with the client's, which it follows.
        ledger: is told of each call.

    """
    # grpc-go asks the DNS twice in 30 s at most; that is as much shorter here as connections are.
    options = ["-target", target, "-slow", f"{SLOW}s", "-resolution", f"{AGE}s"]
    options += ["-authority", NAME, "-certificates", str(certificates)]
    process = await asyncio.create_subprocess_exec(program, *options, stdin=PIPE, stdout=PIPE)
    assert process.stdin
    assert process.stdout
    reading = asyncio.create_task(_read(process.stdout, ledger))
    ledger.calling.add(_NAME)
    try:
        yield
    finally:
        ledger.calling.discard(_NAME)
        process.stdin.close()
        await reading
        await process.wait()


async def _read(lines: asyncio.StreamReader, ledger: Ledger) -> None:
    async for line in lines:
        match json.loads(line):
            case ["begun", email]:
                ledger.unknown.add(email)
            case ["created", email, user_id]:
                ledger.acknowledged[email] = user_id
                ledger.unknown.discard(email)
                ledger.answered(_NAME)
            case ["answered", _]:
                ledger.answered(_NAME)
            case ["failed", kind, what]:
                ledger.failed(_NAME, kind, what)
