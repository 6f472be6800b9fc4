"""Users in a PostgreSQL database, for any number of replicas.

Each operation is one statement, which is a transaction by itself: nothing is left open
between two, and a create takes one round trip. Creates that wait at the same moment share it.
Each may be done again if its answer was lost: the id of a new user is known before.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from typing import override

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
)
from services.user.storage.batches import Batches
from services.user.storage.postgresql_connecting import Connecting
from services.user.storage.postgresql_connection import FAILURES, Connection, Connector, explain
from services.user.storage.postgresql_metrics import ACQUIRE_SECONDS, shown
from services.user.storage.postgresql_probe import Probe
from services.user.storage.postgresql_restart import Restarts
from services.user.storage.postgresql_schema import check_schema
from services.user.users import User

type _Create = tuple[User, IdempotencyKey]

log = structlog.get_logger()

# A user that is there was inserted by an earlier try.
_INSERT = "INSERT INTO users (id, name, email, email_key) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING"
_GET = "SELECT id, name, email FROM users WHERE id = $1"
_PAGE = "SELECT id, name, email FROM users WHERE id > $1 ORDER BY id LIMIT $2"

# A create with the same key that has not ended is waited for. Keys expire by the database's clock, which all
# replicas share. Two expired ones go for each that comes: the table shrinks to what is needed, and no
# create waits for long, nor for one that deletes the same.
#
# All who write several keys and emails do so in one order, or they would wait for each other.
_INSERT_ONCE = """
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[])
    AS given (id, name, email, email_key, key, request)
), expired AS (
    DELETE FROM idempotency_keys WHERE key IN (
        SELECT key FROM idempotency_keys WHERE created_at <= now() - $7::interval AND key <> ALL ($5)
        ORDER BY created_at LIMIT 2 * cardinality($5) FOR UPDATE SKIP LOCKED
    )
), kept AS (
    INSERT INTO idempotency_keys AS known (key, request, user_id, created_at)
    SELECT key, request, id, now() FROM given ORDER BY key COLLATE "C"
    ON CONFLICT (key) DO UPDATE
    SET request = excluded.request, user_id = excluded.user_id, created_at = excluded.created_at
    WHERE known.created_at <= now() - $7::interval
    RETURNING user_id
)
INSERT INTO users (id, name, email, email_key)
SELECT id, name, email, email_key FROM kept JOIN given ON id = user_id ORDER BY email_key COLLATE "C"
RETURNING id
"""
_KNOWN_KEYS = """
SELECT key, request, id, name, email FROM idempotency_keys JOIN users ON id = user_id WHERE key = ANY ($1)
"""
_TAKEN = """
SELECT key FROM unnest($1::text[], $2::text[]) AS given (email_key, key) JOIN users USING (email_key)
WHERE NOT EXISTS (
    SELECT FROM idempotency_keys AS known WHERE known.key = given.key AND created_at > now() - $3::interval
)
"""

_BEFORE_ALL = uuid.UUID(int=0)

_FIRST_ANSWER = 2.0
"""Seconds that the first connection may take to answer before the service starts without."""

_CLOSING = 1.0
"""Seconds for the pool to close once nobody uses it: a part of what a process has after its drain."""


class _ConflictError(Exception):
    """A user that was to be created stands in the way of another one, of this replica or of another."""


@asynccontextmanager
async def open_postgresql(config: DatabaseConfig) -> AsyncIterator[PostgresqlUserStorage]:
    """Open the users in the database at `config.url`, which need not be up yet.

    Raises:
        SchemaError: this program can't work with the schema of the database, which is there.
        StorageError: the URL can't be understood.

    """
    # A slow answer is an answer to the probe.
    patient = Connector(config, statement_timeout=None)
    async with _pool(config) as pool, Probe(patient, pool, config.name) as probe:
        with closing(Restarts(probe.ask, config.connect_timeout)) as restarts:
            storage = PostgresqlUserStorage(pool, probe, restarts, config)
            await _first_ping(storage, config.connect_timeout + _FIRST_ANSWER)
            yield storage


@asynccontextmanager
async def _pool(config: DatabaseConfig) -> AsyncIterator[asyncpg.Pool]:
    connecting = Connecting(Connector(config, config.statement_timeout))
    pool = asyncpg.create_pool(
        min_size=0,
        max_size=config.pool_size,
        connection_class=Connection,
        connect=connecting.connect,
        reset=_keep,
    )
    await pool
    try:
        async with connecting.running():
            with shown(pool):
                yield pool
    finally:
        # What does not close in time is terminated.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await pool.close()


async def _first_ping(storage: PostgresqlUserStorage, patience: float) -> None:
    """Say what is wrong with the database, but begin to serve, which liveness needs, whatever it is."""
    try:
        async with asyncio.timeout(patience):
            await storage.ping()
    except TimeoutError:
        log.warning("the database does not answer yet; not ready until it does", seconds=patience)
    except StorageError as error:
        # What waiting does not mend.
        if isinstance(error, SchemaError) or isinstance(error.__cause__, asyncpg.ClientConfigurationError):
            raise
        log.warning("the database can't be used yet; not ready until it can", reason=str(error))


async def _keep(_connection: asyncpg.Connection) -> None:
    """Take the place of asyncpg's reset, a round trip more: no statement here leaves anything behind."""


def _row(user: User) -> tuple[uuid.UUID, str, str, str]:
    return user.id, user.name, user.email, user.email_key


async def _insert(connection: asyncpg.Connection, user: User) -> None:
    try:
        await connection.execute(_INSERT, *_row(user))
    except asyncpg.UniqueViolationError:
        raise EmailTakenError(user.email) from None


async def _insert_or_know(
    connection: asyncpg.Connection, creates: list[_Create]
) -> tuple[set[uuid.UUID], dict[str, tuple[bytes, User]]]:
    """Insert users as `_insert_once` does; return the new ones' ids, and what is known of the others' keys.

    Raises:
        _ConflictError: none was inserted.

    """
    created = await _insert_once(connection, creates)
    return created, await _known(connection, [key for user, key in creates if user.id not in created])


async def _insert_once(connection: asyncpg.Connection, creates: list[_Create]) -> set[uuid.UUID]:
    """Insert those of the users whose keys are not known, all or none; return their ids.

    Raises:
        _ConflictError: none was inserted.

    """
    rows = [(*_row(user), key.key, key.request) for user, key in creates]
    columns = zip(*rows, strict=True)
    try:
        return {user_id for (user_id,) in await connection.fetch(_INSERT_ONCE, *columns, KEY_LIFETIME)}
    except (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError) as error:
        raise _ConflictError from error


async def _known(connection: asyncpg.Connection, keys: list[IdempotencyKey]) -> dict[str, tuple[bytes, User]]:
    """Return the requests and the users that were created with keys."""
    rows = await connection.fetch(_KNOWN_KEYS, [key.key for key in keys]) if keys else ()
    return {key: (request, User(*user)) for key, request, *user in rows}


async def _taken(connection: asyncpg.Connection, creates: list[_Create]) -> set[str]:
    """Return the keys of those whose email has a user that they have not created before."""
    columns = [user.email_key for user, _ in creates], [key.key for _, key in creates]
    return {key for (key,) in await connection.fetch(_TAKEN, *columns, KEY_LIFETIME)}


class PostgresqlUserStorage(UserStorage):
    """Users in a PostgreSQL database.

    Args:
        pool: its connections; one that broke is replaced when it is needed.
        probe: asks whether the database can be used.
        restarts: has what meets one wait.
        config: bounds.

    """

    def __init__(self, pool: asyncpg.Pool, probe: Probe, restarts: Restarts, config: DatabaseConfig) -> None:
        self._pool = pool
        self._probe = probe
        self._restarts = restarts
        self._timeout = config.connect_timeout
        self._name = config.name
        self._checked = False
        self._batches = Batches(self._create_all, identity=lambda create: create[1].key)

    @override
    async def create(self, user: User, key: IdempotencyKey | None = None) -> User:
        if key is not None:
            return await self._batches.settle((user, key))
        await self._run(partial(_insert, user=user))
        return user

    async def _create_all(self, creates: list[_Create]) -> list[User | Exception]:
        """Create each user once, and return what each create has come to."""
        try:
            created, known = await self._run(partial(_insert_or_know, creates=creates))
        except _ConflictError as conflict:
            if len(creates) == 1 and isinstance(conflict.__cause__, asyncpg.UniqueViolationError):
                return [EmailTakenError(creates[0][0].email)]
        else:
            return [user if user.id in created else self._earlier(key, known) for user, key in creates]
        # Nothing was kept, for the sake of some.
        taken = await self._run(partial(_taken, creates=creates))
        return await self._create_others(creates, taken)

    async def _create_others(self, creates: list[_Create], taken: set[str]) -> list[User | Exception]:
        """Create the users without those whose keys are `taken`, as their emails are."""
        others = [create for create in creates if create[1].key not in taken]
        if len(others) == len(creates):  # two of them want the same email
            return [(await self._create_all([create]))[0] for create in creates]
        results = iter(await self._create_all(others) if others else ())
        return [EmailTakenError(user.email) if key.key in taken else next(results) for user, key in creates]

    def _earlier(self, key: IdempotencyKey, known: dict[str, tuple[bytes, User]]) -> User | Exception:
        if key.key not in known:
            return StorageError(f"{self._name}: the idempotency key expired in this moment")
        request, user = known[key.key]
        return user if request == key.request else KeyReusedError()

    @override
    async def get(self, user_id: uuid.UUID) -> User | None:
        row = await self._run(lambda connection: connection.fetchrow(_GET, user_id))
        return User(*row) if row else None

    @override
    async def page(self, after: uuid.UUID | None, limit: int) -> Sequence[User]:
        rows = await self._run(lambda connection: connection.fetch(_PAGE, after or _BEFORE_ALL, limit))
        return [User(*row) for row in rows]

    @override
    async def ping(self) -> None:
        async with self._failures():
            await self._restarts.ask()

    async def _run[Result](self, statements: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Return what the statements of an operation do, which may be done twice."""
        async with self._failures():
            return await self._restarts.outlast(partial(self._run_once, statements))

    async def _run_once[Result](self, statements: Callable[[Connection], Awaitable[Result]]) -> Result:
        async with self._acquired() as connection, connection.statements():
            if not self._checked:
                await check_schema(connection, self._name)
                self._checked = True
            return await statements(connection)

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Connection]:
        with ACQUIRE_SECONDS.time():
            connection = await self._pool.acquire(timeout=self._timeout)
        try:
            yield connection
        finally:
            try:
                await self._pool.release(connection)
            except TimeoutError:
                # The host does not even answer that a statement is given up. If it hangs, so do the other
                # connections, which would be found out one by one; another host may be the primary now.
                await self._pool.expire_connections()
                raise

    @asynccontextmanager
    async def _failures(self) -> AsyncIterator[None]:
        """Let a StorageError take the place of asyncpg's errors."""
        try:
            yield
        except FAILURES as error:
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                await self._probe.replace_connections()
            raise StorageError(f"{self._name}: {explain(error)}") from error
