"""The schema of a PostgreSQL database: whether it is this program's, and how it becomes so."""

import asyncpg

from services.user.config import DatabaseConfig
from services.user.storage import SchemaError, StorageError, schema
from services.user.storage.postgresql_connection import FAILURES, Connector, explain

_MIGRATION_LOCK = int.from_bytes(b"user.db")
"""The advisory lock of those that migrate: any number that nothing else in the database locks."""


async def migrate_postgresql(config: DatabaseConfig) -> str | None:
    """Migrate the database at `config.url`, and return the version of the schema that it had, if any.

    Raises:
        SchemaError: a later program has migrated it.
        StorageError: it can't be used now, or has tables of another program with our names.

    """
    try:
        connection = await Connector(config, statement_timeout=None).connect()
        try:
            return await _migrate(connection, config.name)
        finally:
            await connection.close(timeout=config.connect_timeout)
    except FAILURES as error:
        raise StorageError(f"{config.name}: {explain(error)}") from error


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


async def check_schema(connection: asyncpg.Connection, name: str) -> None:
    """Accept a database that this program can work with, or raise SchemaError."""
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
