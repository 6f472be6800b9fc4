"""Where users are kept: the interface, and SQLite behind it."""

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, Self

from services.user.users import User


class EmailTakenError(Exception):
    """Another user has the email."""


class StorageError(Exception):
    """The storage can't be used now; the text is for the log and the operator."""


class UserStorage(Protocol):
    """Keeps users. Every method raises StorageError when the storage can't be used."""

    async def create(self, user: User) -> None:
        """Keep a new user, on the disk when this returns.

        Raises:
            EmailTakenError: another user has the same email_key; nothing was kept.

        """

    async def get(self, user_id: uuid.UUID) -> User | None:
        """Return the user with the id, if there is one."""

    async def page(self, after: uuid.UUID | None, limit: int) -> Sequence[User]:
        """Return the `limit` users that follow the id `after` in the order of ids."""


_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE users (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT NOT NULL,
    email_key TEXT NOT NULL UNIQUE
) STRICT, WITHOUT ROWID
"""
_INSERT = "INSERT INTO users (id, name, email, email_key) VALUES (?, ?, ?, ?)"
_GET = "SELECT id, name, email FROM users WHERE id = ?"
_PAGE = "SELECT id, name, email FROM users WHERE id > ? ORDER BY id LIMIT ?"

_BUSY_TIMEOUT = 5.0
"""Seconds that a write waits for another process's write."""


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncIterator[UserStorage]:
    """Open the users in the file `path`, and create it if it does not exist.

    Raises:
        StorageError: the path can't be used, or the file is damaged or not this service's.

    """
    async with Connection(path) as writes:
        await writes.run(_prepare)
        async with Connection(path) as reads:
            yield SqliteUserStorage(reads, writes)


class Connection:
    """A connection to a SQLite file, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "sqlite")

    async def __aenter__(self) -> Self:
        self._sqlite = await self._in_thread(self._connect)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._in_thread(self._sqlite.close)
        self._thread.shutdown()

    async def run[Result](self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        return await self._in_thread(lambda: work(self._sqlite))

    async def _in_thread[Result](self, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise StorageError(f"{self._path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, autocommit=True)
        connection.execute("PRAGMA journal_mode = WAL")
        # With WAL, NORMAL would lose the last users in a power failure.
        connection.execute("PRAGMA synchronous = FULL")
        return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if version == 0 and tables == 0:
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    elif version != _SCHEMA_VERSION:
        raise sqlite3.DatabaseError(
            f"is a database of schema version {version}; this program reads version {_SCHEMA_VERSION}"
        )
    connection.execute("COMMIT")
    (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if damage != "ok":
        raise sqlite3.DatabaseError(f"is damaged: {damage}")


class SqliteUserStorage:
    """Users in a SQLite file.

    A durable write waits for the disk, so it runs in a thread. Reads have another thread,
    or they would queue behind the writes: `bazel run //tools/bench:storage` shows by how much.
    """

    def __init__(self, reads: Connection, writes: Connection) -> None:
        self._reads = reads
        self._writes = writes

    async def create(self, user: User) -> None:
        row = (user.id.bytes, user.name, user.email, user.email_key)

        def insert(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(_INSERT, row)
            except sqlite3.IntegrityError:
                raise EmailTakenError(user.email) from None

        await self._writes.run(insert)

    async def get(self, user_id: uuid.UUID) -> User | None:
        users = await self._select(_GET, user_id.bytes)
        return users[0] if users else None

    async def page(self, after: uuid.UUID | None, limit: int) -> Sequence[User]:
        # The empty blob sorts before every id.
        return await self._select(_PAGE, after.bytes if after else b"", limit)

    async def _select(self, sql: str, *parameters: object) -> list[User]:
        def select(connection: sqlite3.Connection) -> list[User]:
            rows = connection.execute(sql, parameters)
            return [User(uuid.UUID(bytes=user_id), name, email) for user_id, name, email in rows]

        return await self._reads.run(select)
