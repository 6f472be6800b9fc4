"""Where users are kept: the interface, and what is behind it as the configuration says."""

import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.user.config import DatabaseConfig
from services.user.idempotency import IdempotencyKey
from services.user.users import User


class StorageError(Exception):
    """The storage can't be used now; the text is for the log and the operator."""


class SchemaError(StorageError):
    """The database's schema is not this program's; the text says what to do."""


class EmailTakenError(Exception):
    """Another user has the email, which is the text."""


class KeyReusedError(Exception):
    """The idempotency key was given with another request before."""


class UserStorage(Protocol):
    """Keeps users. Every method raises StorageError when the storage can't be used."""

    async def create(self, user: User, key: IdempotencyKey | None = None) -> User:
        """Keep a new user, on the disk when this returns, and return it.

        If the key was given before, with the same request, nothing is kept, and the user of
        that time is returned. Of concurrent creates with one key one is the first.

        Raises:
            EmailTakenError: another user has the same email_key; nothing was kept.
            KeyReusedError: the key was given with another request; nothing was kept.

        """

    async def get(self, user_id: uuid.UUID) -> User | None:
        """Return the user with the id, if there is one."""

    async def page(self, after: uuid.UUID | None, limit: int) -> Sequence[User]:
        """Return the `limit` users that follow the id `after` in the order of ids.

        They are all in memory: however slowly they are used, the database is done with it.
        """

    async def ping(self) -> None:
        """Do nothing, but raise StorageError if the storage can't be used: for readiness."""


def open_storage(config: DatabaseConfig) -> AbstractAsyncContextManager[UserStorage]:
    """Open what `config.url` names.

    A SQLite file is created and migrated as needed. PostgreSQL need not be up yet; if it
    is, its schema must be this program's.

    Raises:
        SchemaError: the database has another schema.
        StorageError: the file can't be used, is damaged, or not this service's.

    """
    # The databases need this module; and only who uses PostgreSQL pays for the import of its driver.
    if config.is_postgresql:
        from services.user.storage.postgresql import open_postgresql  # noqa: PLC0415

        return open_postgresql(config)
    from services.user.storage.sqlite import open_sqlite  # noqa: PLC0415

    return open_sqlite(config.path, config.statement_timeout)


async def migrate_storage(config: DatabaseConfig) -> tuple[str | None, str]:
    """Migrate what `config.url` names; return the schema that it had (None: it was empty) and has now.

    Raises:
        SchemaError: the database is newer than this program, or another program's.
        StorageError: it can't be used now.

    """
    from services.user.storage.schema import VERSION  # noqa: PLC0415

    if config.is_postgresql:
        from services.user.storage.postgresql_schema import migrate_postgresql  # noqa: PLC0415

        return await migrate_postgresql(config), VERSION
    from services.user.storage.sqlite import migrate_sqlite  # noqa: PLC0415

    return await migrate_sqlite(config.path, config.statement_timeout), VERSION
