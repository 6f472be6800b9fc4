"""Creates many users: so many at a time, each of them once however often it is begun again."""

import asyncio
import functools
import hashlib
import json
from collections.abc import AsyncIterator, Callable

import grpc

from services.user.cli.connection import describe
from services.user.cli.csv_file import Rejected, Row
from services.user.cli.user_client import UserClient, patiently

# Answers that are about the one user; any other would be the same for those after it.
_ABOUT_THE_USER = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS}


class Importer:
    """Creates the users of a file, and counts.

    Args:
        client: creates them.
        concurrency: how many at a time.
        patience: seconds that a service which is not there is waited for.
        reject: is told of each line that is not taken.

    """

    def __init__(
        self, client: UserClient, concurrency: int, patience: float, reject: Callable[[Rejected], object]
    ) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(concurrency)
        self._patience = patience
        self._reject = reject
        self._underway: set[int] = set()
        self._last_line = 0
        self.imported = 0
        """Lines whose user is in: created now, or by an earlier run in the last 24 hours."""
        self.rejected = 0
        """Lines that were not taken, `already_there` included."""
        self.already_there = 0
        """Lines whose email another user has, or the same one since an earlier run more than 24 hours ago."""
        self.waits_for = ""
        """The last error, while the service is waited for."""

    @property
    def next_line(self) -> int:
        """The first line of which it is not certain what became of it."""
        return min(self._underway, default=self._last_line + 1)

    async def run(self, records: AsyncIterator[Row | Rejected]) -> None:
        """Create the users of `records`.

        Raises:
            grpc.aio.AioRpcError: the service can't go on; what is underway is cancelled.
            Exception: from `records`, or `reject`.

        """
        try:
            async with asyncio.TaskGroup() as group:
                async for record in records:
                    await self._slots.acquire()
                    self._underway.add(record.line)
                    self._last_line = record.line
                    group.create_task(self._settle(record))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _settle(self, record: Row | Rejected) -> None:
        try:
            outcome = await self._create(record) if isinstance(record, Row) else record
        finally:
            self._slots.release()
        if outcome is None:
            self.imported += 1
        else:
            self.rejected += 1
            self._reject(outcome)
        self._underway.remove(record.line)

    async def _create(self, row: Row) -> Rejected | None:
        key = idempotency_key(row)
        try:
            create = functools.partial(self._client.create, row.name, row.email, key)
            await patiently(create, self._patience, self._wait)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _ABOUT_THE_USER:
                raise
            self.already_there += error.code() is grpc.StatusCode.ALREADY_EXISTS
            return Rejected(row.line, describe(error), row.name, row.email)
        self.waits_for = ""
        return None

    def _wait(self, error: grpc.aio.AioRpcError) -> None:
        self.waits_for = describe(error)


def idempotency_key(row: Row) -> str:
    """Return the key with which this line is created, in this run and every other.

    It is of the line and not of its file: once a mistake in the file is put right, the lines that
    are in already are still known to be. The number is part of it so that the second of two equal
    lines is rejected and not taken for the first.
    """
    content = json.dumps([row.line, row.name, row.email])
    return f"import-{hashlib.sha256(content.encode()).hexdigest()}"
