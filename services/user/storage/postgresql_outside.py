"""What a migration of PostgreSQL does outside transactions, such as CREATE INDEX CONCURRENTLY.

Its statements are kept one by one. If a run ends in between, the next one begins at the first again, so each
must be one that may be repeated. An index is: what is left of a half one is dropped first.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import structlog

from services.user.config import DatabaseConfig
from services.user.storage.postgresql_waits import Waits, connected

if TYPE_CHECKING:
    from services.user.storage.migrate import Step

log = structlog.get_logger()

_INDEX = re.compile(
    r"""\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?("(?:[^"]|"")+"|\w+)\s+ON\s""",
    re.IGNORECASE,
)

_STATE = """
SELECT indisvalid AS valid, EXISTS (
    SELECT FROM pg_stat_progress_create_index WHERE index_relid = indexrelid
) AS in_progress
FROM pg_index WHERE indexrelid = to_regclass($1)
"""

# PostgreSQL 16 has no transaction_timeout.
_IS_TIMEOUT = "name IN ('statement_timeout', 'transaction_timeout') AND setting <> '0'"
_NO_TIMEOUTS = f"SELECT set_config(name, '0', false) FROM pg_settings WHERE {_IS_TIMEOUT}"  # noqa: S608
_TIMEOUTS = f"""
SELECT string_agg(name || ' = ' || setting || ' ' || unit, ', ') FROM pg_settings WHERE {_IS_TIMEOUT}
"""  # noqa: S608

_LOOKS = 5.0
"""Seconds between looks at an index that somebody else makes."""


async def run_outside(config: DatabaseConfig, waits: Waits, step: Step) -> None:
    """Execute the statements of a script outside a transaction."""
    async with _without_timeout(config) as connection:
        for statement in step.statements:
            index = _INDEX.match(statement)
            if index and await _is_made(connection, waits, step, index[1]):
                continue
            await waits.execute(connection, statement, step.revision)


@asynccontextmanager
async def _without_timeout(config: DatabaseConfig) -> AsyncIterator[asyncpg.Connection]:
    """Connect without a time limit for statements, or say that a pooler keeps one for its sessions."""
    async with connected(config) as connection:
        if not connection.is_pooled:
            await connection.execute(_NO_TIMEOUTS)
        async with connection.transaction():
            timeouts = await connection.fetchval(_TIMEOUTS)
        if timeouts:
            log.warning(
                "a pooler keeps the database's time limit, which ends an index that takes longer: "
                "have `migrate` connect to the database itself, or set none for its role",
                limit=timeouts,
            )
        yield connection


async def _is_made(connection: asyncpg.Connection, waits: Waits, step: Step, index: str) -> bool:
    """Return whether an earlier run has made an index; drop it if that run has not come to its end."""
    while True:
        async with connection.transaction():
            state = await connection.fetchrow(_STATE, index)
        if state is None or state["valid"]:
            if state:
                log.info("an earlier run has made the index", migration=step.revision, index=index)
            return state is not None
        if not state["in_progress"]:
            break
        # By a run that has ended, which its connection has not noticed. To drop it would be a pity.
        log.info("an earlier run still makes the index", migration=step.revision, index=index)
        await asyncio.sleep(_LOOKS)
    log.warning(
        "an earlier run has left half an index; it is made again", migration=step.revision, index=index
    )
    await waits.execute(connection, f"DROP INDEX CONCURRENTLY {index}", step.revision)
    return False
