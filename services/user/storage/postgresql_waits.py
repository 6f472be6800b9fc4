"""Says what a migration of PostgreSQL waits for, and who makes it wait."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import structlog

from services.user.config import DatabaseConfig
from services.user.storage import StorageError
from services.user.storage.postgresql_connection import FAILURES, Connection, Connector

log = structlog.get_logger()

_FIRST_LOOK = 0.5
"""Seconds after which a statement is looked at first: sooner than the lock_timeout ends it."""

_LINES = 10.0
"""Seconds between two lines about the same wait."""

# Never the text of what others run: it may have secrets and users in it.
_ABOUT = """
pid, usename, application_name, state, round(extract(epoch FROM now() - xact_start)) AS seconds
"""
# The waiting one is found by its statement: behind a pooler nobody knows which connection has got it.
_BLOCKING = f"""
SELECT {_ABOUT} FROM (
    SELECT unnest(pg_blocking_pids(pid)) AS pid FROM pg_stat_activity
    WHERE state = 'active' AND pid <> pg_backend_pid() AND starts_with($1, query)
) AS blocking LEFT JOIN pg_stat_activity USING (pid)
"""  # noqa: S608
_HOLDING = f"""
SELECT {_ABOUT} FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND database = datid
AND datname = current_database() AND (classid::bigint << 32) | objid::bigint = $1
"""  # noqa: S608


@asynccontextmanager
async def connected(config: DatabaseConfig) -> AsyncIterator[Connection]:
    """Connect for the block, without a bound for a statement's time.

    Queries with results belong into transactions: a pooler may give each transaction another session.
    """
    connection = await Connector(config, statement_timeout=None).connect()
    try:
        yield connection
    finally:
        await connection.close(timeout=config.connect_timeout)


async def holders(connection: asyncpg.Connection, lock: int) -> str:
    """Return who has the advisory lock."""
    return _described(await connection.fetch(_HOLDING, lock))


class Waits:
    """Executes statements, and says so when one takes long.

    Args:
        config: names the database.
        patience: seconds after which a statement that others block is cancelled.

    """

    def __init__(self, config: DatabaseConfig, patience: float) -> None:
        self._config = config
        self._patience = patience
        self.blocked_by = ""
        """Who has blocked the last statement when it was looked at."""

    async def execute(self, connection: asyncpg.Connection, statement: str, migration: str) -> None:
        """Execute a statement.

        Raises:
            StorageError: others have blocked it all the time, and longer than the patience.

        """
        self.blocked_by = ""
        work = asyncio.ensure_future(connection.execute(statement))
        try:
            began = free = time.monotonic()
            for pause in itertools.chain([_FIRST_LOOK], itertools.repeat(min(_LINES, self._patience))):
                await asyncio.wait([work], timeout=pause)
                if work.done():
                    return await _nothing(work)
                free = await self._look(statement, migration, began, free)
        finally:
            work.cancel()
            await asyncio.wait([work])

    async def _look(self, statement: str, migration: str, began: float, free: float) -> float:
        """Say what happens, and return when the statement was not blocked the last time."""
        self.blocked_by = await self._blocking(statement)
        now = time.monotonic()
        about = {"migration": migration, "seconds": round(now - began, 1)}
        if self.blocked_by:
            log.info("a migration waits for a lock", **about, blocked_by=self.blocked_by)
        else:
            log.info("a migration runs", **about)
        if self.blocked_by and now - free > self._patience:
            raise StorageError(
                f"{self._config.name}: migration {migration}: got no lock within {now - free:.0f} s, "
                f"blocked by {self.blocked_by}: end what blocks it, and migrate again"
            )
        return free if self.blocked_by else now

    async def _blocking(self, statement: str) -> str:
        # A connection and a transaction of its own each time: one that stays open would be waited for, too.
        try:
            async with connected(self._config) as connection, connection.transaction():
                return _described(await connection.fetch(_BLOCKING, statement))
        except FAILURES:
            return ""


async def _nothing(work: asyncio.Future[str]) -> None:
    await work


def _described(rows: Sequence[asyncpg.Record]) -> str:
    return ", ".join(map(_described_one, rows))


def _described_one(row: asyncpg.Record) -> str:
    if not row["pid"]:  # so says pg_blocking_pids
        return "a prepared transaction"
    if row["state"] is None:  # as all roles but a few see others'
        return f"pid {row['pid']} ({row['usename'] or 'not shown'}; a member of pg_read_all_stats sees more)"
    who = f"{row['usename'] or 'the database itself'}, {row['application_name'] or 'no application_name'}"
    return f"pid {row['pid']} ({who}, {row['state']}, for {row['seconds'] or 0} s)"
