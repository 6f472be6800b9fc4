"""Which schema this program works with, and what is said of any other."""

from services.user.storage import SchemaError

VERSION = "0002"
"""The last revision in migrations/versions. Each is larger than the one before, as text too."""

READ_VERSION = "SELECT version_num FROM alembic_version"
"""The query of what `check` is given; in a database that was never migrated the table is missing."""


def check(found: str | None, where: str) -> None:
    """Accept a database that has this program's schema.

    Args:
        found: what READ_VERSION gave; None if the table is missing.
        where: names the database in errors.

    Raises:
        SchemaError: it has another.

    """
    check_not_newer(found, where)
    if found != VERSION:
        has = f"has schema {found}" if found else "has no schema yet"
        raise SchemaError(
            f"{where}: the database {has}, this program needs {VERSION}: run `server migrate` first"
        )


def check_not_newer(found: str | None, where: str) -> None:
    """Accept a database that can be migrated.

    Raises:
        SchemaError: a later program has migrated it.

    """
    if found and found > VERSION:
        raise SchemaError(
            f"{where}: the database has schema {found}; this program knows up to {VERSION}: "
            "deploy a newer program"
        )
