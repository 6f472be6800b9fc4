"""Users in a PostgreSQL database, for any number of replicas.

Each operation is one statement, which is a transaction by itself: nothing is left open
between two, and a create takes one round trip.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, override

import asyncpg
import structlog

from services.user.config import DatabaseConfig
from services.user.idempotency import KEY_LIFETIME, IdempotencyKey
from services.user.storage import (
    EmailTakenError,
    KeyReusedError,
    SchemaError,
    StorageError,
    UserStorage,
    schema,
)
from services.user.users import User

log = structlog.get_logger()

_INSERT = "INSERT INTO users (id, name, email, email_key) VALUES ($1, $2, $3, $4)"
_GET = "SELECT id, name, email FROM users WHERE id = $1"
_PAGE = "SELECT id, name, email FROM users WHERE id > $1 ORDER BY id LIMIT $2"

# A create with the same key that has not ended is waited for. Keys expire by the database's clock, which all
# replicas share. Two expired ones go for each that comes: the table shrinks to what is needed, and no
# create waits for long, nor for one that deletes the same.
_INSERT_ONCE = """
WITH expired AS (
    DELETE FROM idempotency_keys WHERE key IN (
        SELECT key FROM idempotency_keys WHERE created_at <= now() - $7::interval AND key <> $5
        ORDER BY created_at LIMIT 2 FOR UPDATE SKIP LOCKED
    )
), kept AS (
    INSERT INTO idempotency_keys AS known (key, request, user_id, created_at) VALUES ($5, $6, $1, now())
    ON CONFLICT (key) DO UPDATE
    SET request = excluded.request, user_id = excluded.user_id, created_at = excluded.created_at
    WHERE known.created_at <= now() - $7::interval
    RETURNING user_id
)
INSERT INTO users (id, name, email, email_key) SELECT user_id, $2, $3, $4 FROM kept RETURNING id
"""
_KNOWN_KEY = """
SELECT request, id, name, email FROM idempotency_keys JOIN users ON id = user_id WHERE key = $1
"""

_BEFORE_ALL = uuid.UUID(int=0)

_MIGRATION_LOCK = int.from_bytes(b"user.db")
"""The advisory lock of those that migrate: any number that nothing else in the database locks."""

_CLOSING = 1.0
"""Seconds for the pool to close once nobody uses it: a part of what a process has after its drain."""

_FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when the database can't be used (a TimeoutError is an OSError)."""


@asynccontextmanager
async def open_postgresql(config: DatabaseConfig) -> AsyncIterator[PostgresqlUserStorage]:
    """Open the users in the database at `config.url`, which need not be up yet.

    Raises:
        SchemaError: the database is there, with another schema than this program's.
        StorageError: the URL can't be understood.

    """
    pool = asyncpg.create_pool(
        config.url,
        min_size=0,
        max_size=config.pool_size,
        timeout=config.connect_timeout,
        # The database ends a statement by itself; if it is not heard of any more, its connection is given up.
        server_settings={
            "application_name": "user-service",
            "statement_timeout": str(round(config.statement_timeout * 1000)),
        },
        command_timeout=config.statement_timeout,
        connect=_connect,
        reset=_keep,
    )
    await pool
    try:
        storage = PostgresqlUserStorage(pool, config)
        await _first_ping(storage)
        yield storage
    finally:
        # What does not close in time is terminated.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await pool.close()


async def _first_ping(storage: PostgresqlUserStorage) -> None:
    try:
        await storage.ping()
    except StorageError as error:
        # What waiting does not mend.
        if isinstance(error, SchemaError) or isinstance(error.__cause__, asyncpg.ClientConfigurationError):
            raise
        log.warning("the database is not there; not ready until it is", reason=str(error))


async def _connect(*arguments: Any, **settings: Any) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(*arguments, **settings)
    except asyncpg.ClientConfigurationError:
        raise
    except ValueError:
        # Of a parameter, a host's name, ...: it may quote a secret.
        raise asyncpg.ClientConfigurationError("the URL has a host or parameter that can't be used") from None


async def _keep(_connection: asyncpg.Connection) -> None:
    """Take the place of asyncpg's reset, a round trip more: no statement here leaves anything behind."""


async def migrate_postgresql(config: DatabaseConfig) -> str | None:
    """Migrate the database at `config.url`, and return the version of the schema that it had, if any.

    Raises:
        SchemaError: a later program has migrated it.
        StorageError: it can't be used now, or has tables of another program with our names.

    """
    try:
        connection = await _connect(config.url, timeout=config.connect_timeout)
        try:
            return await _migrate(connection, config.name)
        finally:
            await connection.close(timeout=config.connect_timeout)
    except _FAILURES as error:
        raise StorageError(f"{config.name}: {_explain(error)}") from error


async def _migrate(connection: asyncpg.Connection, name: str) -> str | None:
    # Held until the connection ends: others that migrate wait here, and then find nothing to do.
    await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
    found = await _read_version(connection)
    schema.check_not_newer(found, name)
    _check_encoding(connection, name)
    if found != schema.VERSION:
        # Alembic takes half a second to import; a server doesn't need it.
        from services.user.storage.migrate import upgrade_script  # noqa: PLC0415

        async with connection.transaction():
            await connection.execute(upgrade_script("postgresql", found))
    return found


async def _check_schema(connection: asyncpg.Connection, name: str) -> None:
    schema.check(await _read_version(connection), name)
    _check_encoding(connection, name)


def _check_encoding(connection: asyncpg.Connection, name: str) -> None:
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise SchemaError(f"{name}: the database's encoding is {encoding}; create it with ENCODING 'UTF8'")


async def _read_version(connection: asyncpg.Connection) -> str | None:
    """Return the version of the schema, None if there is none."""
    try:
        version: str | None = await connection.fetchval(schema.READ_VERSION)
    except asyncpg.UndefinedTableError:
        return None
    return version


def _explain(error: Exception) -> str:
    """Return one of _FAILURES in words."""
    if isinstance(error, TimeoutError):
        return "took longer than database.connect_timeout or database.statement_timeout"
    return str(error) or type(error).__name__


class PostgresqlUserStorage(UserStorage):
    """Users in a PostgreSQL database.

    Args:
        pool: its connections; one that broke is replaced when it is needed.
        config: bounds.

    """

    def __init__(self, pool: asyncpg.Pool, config: DatabaseConfig) -> None:
        self._pool = pool
        self._timeout = config.connect_timeout
        self._name = config.name
        self._checked = False

    @override
    async def create(self, user: User, key: IdempotencyKey | None = None) -> User:
        row = (user.id, user.name, user.email, user.email_key)
        async with self._connection() as connection:
            try:
                if key is None:
                    await connection.execute(_INSERT, *row)
                    return user
                if await connection.fetchrow(_INSERT_ONCE, *row, key.key, key.request, KEY_LIFETIME):
                    return user
            except asyncpg.UniqueViolationError:
                raise EmailTakenError(user.email) from None
            known = await connection.fetchrow(_KNOWN_KEY, key.key)
        if known is None:
            raise StorageError(f"{self._name}: the idempotency key expired in this moment")
        request, *earlier = known
        if request != key.request:
            raise KeyReusedError
        return User(*earlier)

    @override
    async def get(self, user_id: uuid.UUID) -> User | None:
        async with self._connection() as connection:
            row = await connection.fetchrow(_GET, user_id)
        return User(*row) if row else None

    @override
    async def page(self, after: uuid.UUID | None, limit: int) -> Sequence[User]:
        async with self._connection() as connection:
            return [User(*row) for row in await connection.fetch(_PAGE, after or _BEFORE_ALL, limit)]

    @override
    async def ping(self) -> None:
        async with self._connection() as connection:
            await connection.execute("SELECT")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            async with self._pool.acquire(timeout=self._timeout) as connection:
                if not self._checked:
                    await _check_schema(connection, self._name)
                    self._checked = True
                yield connection
        except _FAILURES as error:
            raise StorageError(f"{self._name}: {_explain(error)}") from error
