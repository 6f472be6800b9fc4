"""What a PostgreSQL database says of its schema, and whether this program can work with it."""

import json

import asyncpg

from services.user.storage import SchemaError, schema

# The row as a whole: whether or not it has the column oldest_program yet.
_READ = "SELECT to_jsonb(alembic_version) FROM alembic_version"


async def check_schema(connection: asyncpg.Connection, name: str) -> None:
    """Accept a database that this program can work with; it takes one query.

    Raises:
        NotMigratedError: its schema is older than this program's.
        SchemaError: a later program has migrated it, and this one does not work with that, or its encoding
            can't hold every name.

    """
    check_encoding(connection, name)
    schema.check(await read_schema(connection), name)


def check_encoding(connection: asyncpg.Connection, name: str) -> None:
    """Raise SchemaError if the database can't hold every name."""
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise SchemaError(f"{name}: the database's encoding is {encoding}; create it with ENCODING 'UTF8'")


async def read_schema(connection: asyncpg.Connection) -> schema.Schema | None:
    """Return what the database says of its schema, None if it was never migrated."""
    try:
        row = await connection.fetchval(_READ)
    except asyncpg.UndefinedTableError:
        return None
    return schema.of_row(json.loads(row)) if row else None
