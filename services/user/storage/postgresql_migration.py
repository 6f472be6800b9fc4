"""Migrates a PostgreSQL database while it is in use: never waits for long, and never without a line.

A migration that waits for a lock on a table has all who come later wait behind it. So it gives up soon,
lets them pass, and tries again. The lock of those that migrate ends with a transaction: nothing, a pooler
of connections neither, can keep it longer.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import structlog

from services.user.config import DatabaseConfig
from services.user.storage import StorageError, schema
from services.user.storage.postgresql_connection import FAILURES, explain
from services.user.storage.postgresql_outside import run_outside
from services.user.storage.postgresql_schema import check_encoding, read_schema
from services.user.storage.postgresql_waits import Waits, connected, holders

if TYPE_CHECKING:  # Alembic takes half a second to import; a database that is up to date doesn't need it.
    from services.user.storage.migrate import Step

log = structlog.get_logger()

_MIGRATION_LOCK = int.from_bytes(b"user.db")
"""The advisory lock of those that migrate: any number that nothing else in the database locks."""

_LOCK_TIMEOUT = 1.0
"""Seconds that a try waits for a lock: calls wait behind it, and their deadlines are some seconds."""

_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries, in which calls pass; the last one again and again."""

PATIENCE = 300.0
"""Seconds without a lock after which a migration fails: its Job has 600, and is to say why before."""

# What the database, the role or a pooler has set is meant for calls. Gone with the transaction.
_SETTINGS = f"""
SET LOCAL lock_timeout = {round(_LOCK_TIMEOUT * 1000)};
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout'
"""  # noqa: S608


async def migrate_postgresql(config: DatabaseConfig, patience: float = PATIENCE) -> str | None:
    """Migrate the database at `config.url`, and return the version of the schema that it had, if any.

    Args:
        config: names the database.
        patience: seconds that all scripts together may wait for locks of others; one that runs outside a
            transaction may wait so long by itself.

    Raises:
        SchemaError: this program does not work with its schema or encoding, or programs that may be running
            would not work with it afterwards.
        StorageError: it can't be used now, or has tables of another program with our names.

    """
    try:
        async with connected(config) as connection:
            return await _Migration(config, connection, patience).run()
    except FAILURES as error:
        raise StorageError(f"{config.name}: {explain(error)}") from error


class _BusyError(Exception):
    """Somebody else has the lock of those that migrate; the text says who."""


class _Migration:
    """A run of `migrate`: script by script, each under the lock of those that migrate."""

    def __init__(self, config: DatabaseConfig, connection: asyncpg.Connection, patience: float) -> None:
        self._config = config
        self._connection = connection
        self._patience = patience
        self._waits = Waits(config, patience)
        self._found: schema.Schema | None = None
        self._steps: list[Step] | None = None
        self._current = "start"
        self._waited = 0.0
        """Seconds in which the tries of scripts that are done got no lock."""

    async def run(self) -> str | None:
        """Migrate, and return the version that was found."""
        while await self._try_until_done():
            pass
        return self._found.version if self._found else None

    async def _try_until_done(self) -> bool:
        """Do the next thing, as soon as others let it; return whether there may be another."""
        began = time.monotonic() - self._waited
        for count, pause in enumerate(itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])), 1):
            waited = time.monotonic() - began
            try:
                async with self._locked():
                    is_more = await self._do_next()
            except _BusyError as error:
                self._give_up_or_say("another migration runs", str(error), count, pause, began)
            except asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError:
                self._give_up_or_say("got no lock", self._waits.blocked_by, count, pause, began)
            else:
                self._waited = waited
                return is_more
            await asyncio.sleep(pause)
        raise AssertionError

    def _give_up_or_say(self, what: str, who: str, count: int, pause: float, began: float) -> None:
        waited = time.monotonic() - began
        if waited + pause > self._patience:
            raise StorageError(
                f"{self._config.name}: migration {self._current}: {what} in {count} tries within "
                f"{waited:.0f} s, blocked by {who or 'someone unknown'}; nothing of it was kept: "
                "end what blocks it, or migrate again when there is less to do"
            )
        log.warning(
            "a migration tries again",
            reason=what,
            migration=self._current,
            tries=count,
            blocked_by=who,
            seconds=round(waited, 1),
            pause=pause,
        )

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        # Who waits inside a statement for a lock has a snapshot, and CREATE INDEX CONCURRENTLY waits for
        # the end of every snapshot: that of the holder would wait for us, and we for the holder.
        async with self._connection.transaction():
            query = "SELECT pg_try_advisory_xact_lock($1)"
            if not await self._connection.fetchval(query, _MIGRATION_LOCK):
                raise _BusyError(await holders(self._connection, _MIGRATION_LOCK))
            await self._connection.execute(_SETTINGS)
            yield

    async def _do_next(self) -> bool:
        found = await self._read()
        if self._steps is None:
            self._steps = self._plan(found)
        if found and found.oldest_program is None:
            await self._add_mark(found)
            return True
        step = next((s for s in self._steps if not found or s.revision > found.version), None)
        if step:
            await self._apply(step)
        return bool(step)

    async def _read(self) -> schema.Schema | None:
        # An error would end the transaction.
        is_there = await self._connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
        return await read_schema(self._connection, self._config.name) if is_there else None

    def _plan(self, found: schema.Schema | None) -> list[Step]:
        """Return what is to be done, once it is sure that it may be."""
        self._found = found
        check_encoding(self._connection, self._config.name)
        schema.check_not_too_new(found, self._config.name)
        if found and found.version >= schema.VERSION:
            return []
        from services.user.storage.migrate import check_contraction, steps  # noqa: PLC0415

        version = found.version if found else None
        to_do = steps("postgresql", version)
        check_contraction(version, to_do, self._config.name)
        return to_do

    async def _add_mark(self, found: schema.Schema) -> None:
        """Do it in a transaction of its own: servers read the table to be ready, and would wait."""
        from services.user.storage.migrate import add_mark  # noqa: PLC0415

        self._current = "of the mark"
        for statement in add_mark(found.version):
            await self._waits.execute(self._connection, statement, self._current)

    async def _apply(self, step: Step) -> None:
        self._current = step.revision
        began = time.monotonic()
        try:
            if step.transactional:
                for statement in step.statements:
                    await self._waits.execute(self._connection, statement, step.revision)
            else:
                # It ends what the last query has left open, and that has a snapshot: see `_locked`.
                await self._connection.execute("SELECT")
                await run_outside(self._config, self._waits, step)
            for statement in step.record:
                await self._connection.execute(statement)
        except asyncpg.PostgresError as error:
            if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.DeadlockDetectedError):
                raise
            # Without its detail, which quotes rows.
            raise StorageError(f"{self._config.name}: migration {step.revision}: {error.args[0]}") from error
        log.info("migrated", migration=step.revision, seconds=round(time.monotonic() - began, 3))
