"""Which schema this program works with, and what is said of any other.

A database says two things: which schema it has, and the oldest schema whose programs still work with it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.user.storage import NotMigratedError, SchemaError, StorageError

VERSION = "0002"
"""The last revision in migrations/versions. Each is larger than the one before, as text too."""


class Schema(NamedTuple):
    """What a database says of itself in the one row of alembic_version."""

    version: str
    """The revision of the last script that was applied."""

    oldest_program: str | None
    """Programs of this schema and later ones work with it; None before a `migrate` that knows of it."""

    def works_with(self, program: str) -> bool:
        """Whether a program of the schema `program` works with this one, which is the same or a later one."""
        return self.version == program or (self.oldest_program or self.version) <= program


def of_rows(rows: Sequence[Mapping[str, str | None]], where: str, *, has_users: bool) -> Schema:
    """Return what alembic_version says, in which the column oldest_program may be missing.

    Other programs have a table of this name, too.

    Args:
        rows: those of the table.
        where: names the database in errors.
        has_users: whether there is something with the name `users` beside it.

    Raises:
        StorageError: there is no row (yet: a backup may be on its way back), or no users.
        SchemaError: it is another program's.

    """
    if not rows:
        raise StorageError(f"{where}: alembic_version has no row, which says what schema the database has")
    if len(rows) > 1 or not rows[0].get("version_num"):
        raise SchemaError(f"{where}: is the database of another program, by what alembic_version has in it")
    if not has_users:
        raise StorageError(
            f"{where}: there is alembic_version but no table users: it is another program's, or incomplete"
        )
    return Schema(str(rows[0]["version_num"]), rows[0].get("oldest_program"))


def check(found: Schema | None, where: str) -> None:
    """Accept a database that this program can work with.

    Args:
        found: what the database says; None if it was never migrated.
        where: names the database in errors.

    Raises:
        NotMigratedError: its schema is older than this program's.
        SchemaError: a later program has migrated it, and this one does not work with that.

    """
    if found is None or found.version < VERSION:
        has = f"has schema {found.version}" if found else "has no schema yet"
        raise NotMigratedError(
            f"{where}: the database {has}, this program needs {VERSION}: run `server migrate` first"
        )
    check_not_too_new(found, where)


def check_not_too_new(found: Schema | None, where: str) -> None:
    """Accept a database that can be migrated, or need not be.

    Raises:
        SchemaError: a later program has migrated it, and this one does not work with that.

    """
    if found is None or found.version <= VERSION or found.works_with(VERSION):
        return
    works = (
        f", which works with programs of schema {found.oldest_program} and later; this one has {VERSION}"
        if found.oldest_program
        else f"; this program knows up to {VERSION}"
    )
    raise SchemaError(f"{where}: the database has schema {found.version}{works}: deploy a newer program")
