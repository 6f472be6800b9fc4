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
    """This program can never work with the database as it is; the text says what to do."""


class NotMigratedError(StorageError):
    """The database's schema is older than this program needs; once it is migrated, all is well."""


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

    A SQLite file is created and migrated as needed. PostgreSQL need not be up nor migrated yet.

    Raises:
        SchemaError: a later program has migrated the database, and this one does not work with that.
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

    One that a later program has migrated stays as it is, if this program works with it.

    Raises:
        SchemaError: this program does not work with the database, which is newer or another program's, or
            programs that may be running would not work with it afterwards.
        StorageError: it can't be used now.

    """
    from services.user.storage.schema import VERSION  # noqa: PLC0415

    if config.is_postgresql:
        from services.user.storage.postgresql_migration import migrate_postgresql  # noqa: PLC0415

        found = await migrate_postgresql(config)
    else:
        from services.user.storage.sqlite import migrate_sqlite  # noqa: PLC0415

        found = await migrate_sqlite(config.path, config.statement_timeout)
    return found, max(found or "", VERSION)
