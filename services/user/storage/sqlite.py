"""Users in a SQLite file."""

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self, override

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

_INSERT = "INSERT INTO users (id, name, email, email_key) VALUES (?, ?, ?, ?)"
_GET = "SELECT id, name, email FROM users WHERE id = ?"
_PAGE = "SELECT id, name, email FROM users WHERE id > ? ORDER BY id LIMIT ?"
_PING = "SELECT id, name, email FROM users LIMIT 1"

_KNOWN_KEY = """
SELECT request, id, name, email FROM idempotency_keys JOIN users ON id = user_id
WHERE key = ? AND created_at > ?
"""
_KEEP_KEY = "INSERT OR REPLACE INTO idempotency_keys (key, request, user_id, created_at) VALUES (?, ?, ?, ?)"
# Two for each that comes: the table shrinks to what is needed, and no create waits for long.
_DELETE_EXPIRED_KEYS = """
DELETE FROM idempotency_keys
WHERE key IN (SELECT key FROM idempotency_keys WHERE created_at <= ? ORDER BY created_at LIMIT 2)
"""

_VERSION_BEFORE_MIGRATIONS = 1
"""The PRAGMA user_version of files that were made before there were migrations: their schema is 0001."""


@asynccontextmanager
async def open_sqlite(path: Path, busy_timeout: float) -> AsyncIterator[SqliteUserStorage]:
    """Open the users in the file `path`; create and migrate it if needed.

    Args:
        path: the file.
        busy_timeout: seconds that a write waits for another process's write.

    Raises:
        SchemaError: a later program has migrated the file, and this one does not work with that, or it is
            not this service's.
        StorageError: the path can't be used, or the file is damaged.

    """
    async with Connection(path, busy_timeout) as writes:
        await writes.run(lambda connection: _migrate(connection, path))
        await writes.run(_check_for_damage)
        async with Connection(path, busy_timeout) as reads:
            yield SqliteUserStorage(reads, writes, path)


async def migrate_sqlite(path: Path, busy_timeout: float) -> str | None:
    """Create or migrate the file `path`, and return the version of the schema that it had, if any.

    Raises as `open_sqlite` does.
    """
    async with Connection(path, busy_timeout) as connection:
        return await connection.run(lambda sqlite: _migrate(sqlite, path))


class Connection:
    """A connection to a SQLite file, in a thread of its own."""

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._thread = ThreadPoolExecutor(1, "sqlite")

    async def __aenter__(self) -> Self:
        self._sqlite = await self._in_thread(self._connect)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._in_thread(self._sqlite.close)
        self._thread.shutdown()

    async def run[Result](self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Return what `work` does with the connection; a StorageError takes the place of sqlite3's."""
        return await self._in_thread(lambda: work(self._sqlite))

    async def _in_thread[Result](self, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise StorageError(f"{self._path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._busy_timeout, autocommit=True)
        _use_wal(connection, self._busy_timeout)
        # With WAL, NORMAL would lose the last users in a power failure.
        connection.execute("PRAGMA synchronous = FULL")
        return connection


def _use_wal(connection: sqlite3.Connection, busy_timeout: float) -> None:
    """Switch a new file to WAL; while others do the same SQLite refuses it at once, whatever its timeout."""
    end = time.monotonic() + busy_timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # After some errors, such as a full disk, SQLite has already rolled back.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _migrate(connection: sqlite3.Connection, path: Path) -> str | None:
    with _transaction(connection):
        found = _schema(connection, path)
        schema.check_not_too_new(found, str(path))
        if found is None or found.version < schema.VERSION or found.oldest_program is None:
            _apply(connection, found)
    return found.version if found else None


def _apply(connection: sqlite3.Connection, found: schema.Schema | None) -> None:
    """Bring the file up to date, also where that ends older programs: whoever opens it has replaced them."""
    # Alembic takes half a second to import; most starts don't need it.
    from services.user.storage.migrate import add_mark, steps  # noqa: PLC0415

    statements = list(add_mark(found.version)) if found and found.oldest_program is None else []
    for step in steps("sqlite", found.version if found else None):
        statements += [*step.statements, *step.record]
    for statement in statements:
        connection.execute(statement)
    # A program of the time before migrations refuses the file from now on.
    connection.execute("PRAGMA user_version = 0")


def _check_for_damage(connection: sqlite3.Connection) -> None:
    (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if damage != "ok":
        raise sqlite3.DatabaseError(f"is damaged: {damage}")


def _schema(connection: sqlite3.Connection, path: Path) -> schema.Schema | None:
    query = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')"
    tables = [name for (name,) in connection.execute(query)]
    if "alembic_version" in tables:
        return _read_schema(connection, path, has_users="users" in tables)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and version != _VERSION_BEFORE_MIGRATIONS:
        raise SchemaError(f"{path}: is the database of another program; it has the table {tables[0]!a}")
    return None


def _read_schema(connection: sqlite3.Connection, path: Path, *, has_users: bool) -> schema.Schema:
    cursor = connection.execute("SELECT * FROM alembic_version")
    names = [column for column, *_ in cursor.description]
    return schema.of_rows(
        [dict(zip(names, row, strict=True)) for row in cursor], str(path), has_users=has_users
    )


class SqliteUserStorage(UserStorage):
    """Users in a SQLite file.

    A durable write waits for the disk, so it runs in a thread. Reads have another thread,
    or they would queue behind the writes: `bazel run //tools/bench:storage` shows by how much.
    """

    def __init__(self, reads: Connection, writes: Connection, path: Path) -> None:
        self._reads = reads
        self._writes = writes
        self._path = path

    @override
    async def create(self, user: User, key: IdempotencyKey | None = None) -> User:
        if key is None:
            return await self._writes.run(lambda connection: _insert(connection, user))
        return await self._writes.run(lambda connection: _insert_once(connection, user, key))

    @override
    async def get(self, user_id: uuid.UUID) -> User | None:
        users = await self._select(_GET, user_id.bytes)
        return users[0] if users else None

    @override
    async def page(self, after: uuid.UUID | None, limit: int) -> Sequence[User]:
        # The empty blob sorts before every id.
        return await self._select(_PAGE, after.bytes if after else b"", limit)

    @override
    async def ping(self) -> None:
        await self._select(_PING)
        # A later program may have migrated the file meanwhile.
        found = await self._reads.run(lambda sqlite: _read_schema(sqlite, self._path, has_users=True))
        schema.check(found, str(self._path))

    async def _select(self, sql: str, *parameters: object) -> list[User]:
        return await self._reads.run(
            lambda connection: [_user(*row) for row in connection.execute(sql, parameters)]
        )


def _user(user_id: bytes, name: str, email: str) -> User:
    return User(uuid.UUID(bytes=user_id), name, email)


def _insert(connection: sqlite3.Connection, user: User) -> User:
    try:
        connection.execute(_INSERT, (user.id.bytes, user.name, user.email, user.email_key))
    except sqlite3.IntegrityError:
        raise EmailTakenError(user.email) from None
    return user


def _insert_once(connection: sqlite3.Connection, user: User, key: IdempotencyKey) -> User:
    now = int(time.time())
    expired = now - KEY_LIFETIME.total_seconds()
    with _transaction(connection):
        known = connection.execute(_KNOWN_KEY, (key.key, expired)).fetchone()
        if known is None:
            _insert(connection, user)
            connection.execute(_KEEP_KEY, (key.key, key.request, user.id.bytes, now))
            connection.execute(_DELETE_EXPIRED_KEYS, (expired,))
            return user
    request, *earlier = known
    if request != key.request:
        raise KeyReusedError
    return _user(*earlier)
