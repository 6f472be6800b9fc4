"""What a PostgreSQL database says of its schema, and whether this program can work with it."""

import json

import asyncpg

from services.user.storage import SchemaError, schema

# Each row as a whole: whether or not it has the column oldest_program yet. The users are not touched: what
# locks them would have all who ask this wait.
_READ = "SELECT to_jsonb(alembic_version), to_regclass('users') IS NOT NULL FROM alembic_version"


async def check_schema(connection: asyncpg.Connection, name: str) -> None:
    """Accept a database that this program can work with; it takes one query.

    Raises:
        NotMigratedError: its schema is older than this program's.
        SchemaError: a later program has migrated it, and this one does not work with that, or its encoding
            can't hold every name.

    """
    check_encoding(connection, name)
    schema.check(await read_schema(connection, name), name)


def check_encoding(connection: asyncpg.Connection, name: str) -> None:
    """Raise SchemaError if the database can't hold every name."""
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise SchemaError(f"{name}: the database's encoding is {encoding}; create it with ENCODING 'UTF8'")


async def read_schema(connection: asyncpg.Connection, name: str) -> schema.Schema | None:
    """Return what the database says of its schema, None if it was never migrated.

    Raises:
        StorageError: what it says is not of this service's database.

    """
    try:
        rows = await connection.fetch(_READ)
    except asyncpg.UndefinedTableError:
        return None
    has_users = all(has_users for _, has_users in rows)
    return schema.of_rows([json.loads(row) for row, _ in rows], name, has_users=has_users)
