"""Makes the SQL that brings a schema up to date, from the scripts in migrations/versions.

Alembic writes it in its offline mode, and the database's own driver runs it. So there is one set
of scripts for both databases, and no second driver of SQLAlchemy's for each.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

# Before the import, which already logs: what it does here is text, not yet a migration.
logging.getLogger("alembic").setLevel(logging.WARNING)

from alembic.migration import MigrationContext  # noqa: E402
from alembic.operations import Operations  # noqa: E402
from alembic.script import Script, ScriptDirectory  # noqa: E402

from services.user.storage import SchemaError  # noqa: E402

_MIGRATIONS = Path(__file__).with_name("migrations")

_CREATE = """
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY,
    oldest_program VARCHAR(32)
)
"""


@dataclass(frozen=True)
class Step:
    """What one script does to a database of the version before it.

    A script says `transactional` and `oldest_program` of itself by variables of these names.
    """

    revision: str

    statements: tuple[str, ...]

    record: tuple[str, ...]
    """The statements that have the database say what it now is."""

    transactional: bool
    """False if its statements must run outside a transaction, one by one; PostgreSQL only."""

    oldest_program: str | None
    """If it takes something away: the oldest schema whose programs still work afterwards."""


def steps(dialect: str, found: str | None, *, folder: Path = _MIGRATIONS) -> list[Step]:
    """Return what leads from the version `found` (None: from nothing) to the last one.

    Args:
        dialect: SQLAlchemy's name of the database.
        found: the version that it has.
        folder: with the folder `versions`, in which the scripts are.

    """
    scripts = _scripts(folder)
    later = [script for script in scripts if found is None or script.revision > found]
    return [_step(dialect, script, _mark(scripts, script.revision)) for script in later]


def add_mark(found: str) -> tuple[str, ...]:
    """Return the statements that have a database of the version `found` say its oldest program.

    Those are for one of the time when no program asked for it.
    """
    mark = _mark(_scripts(_MIGRATIONS), found)
    return (
        "ALTER TABLE alembic_version ADD COLUMN oldest_program VARCHAR(32)",
        f"UPDATE alembic_version SET oldest_program = '{mark}'",  # noqa: S608
    )


def check_contraction(found: str | None, to_do: list[Step], where: str) -> None:
    """Accept steps after which the programs of the version `found` still work, for they may be running.

    Raises:
        SchemaError: one of the steps takes away what these need.

    """
    for step in to_do:
        if found and step.oldest_program and step.oldest_program > found:
            oldest = step.oldest_program
            raise SchemaError(
                f"{where}: migration {step.revision} ends programs of schemas before {oldest}, and those of "
                f"{found} may be running: deploy the release with schema {oldest} first"
            )


def _scripts(folder: Path) -> list[Script]:
    """Return all scripts, the first one first."""
    return list(reversed(list(ScriptDirectory(str(folder)).walk_revisions())))


def _mark(scripts: list[Script], version: str) -> str:
    """Return the oldest program that works with a database of a version."""
    applied = [script for script in scripts if script.revision <= version]
    declared = [getattr(script.module, "oldest_program", None) for script in applied]
    return str(max([scripts[0].revision, *filter(None, declared)]))


def _step(dialect: str, script: Script, mark: str) -> Step:
    return Step(
        script.revision,
        _statements(dialect, script),
        _record(script, mark),
        transactional=getattr(script.module, "transactional", True),
        oldest_program=getattr(script.module, "oldest_program", None),
    )


class _Written(list[str]):
    """A text file to Alembic, which writes one statement at a time."""

    def write(self, text: str) -> None:
        self.append(text.strip().removesuffix(";"))

    def flush(self) -> None:
        """Do nothing."""


def _statements(dialect: str, script: Script) -> tuple[str, ...]:
    written = _Written()
    context = MigrationContext.configure(
        dialect_name=dialect,
        # The paramstyle of SQLAlchemy's default driver would double each %.
        dialect_opts={"paramstyle": "named"},
        opts={"as_sql": True, "output_buffer": written, "transactional_ddl": False},
    )
    with Operations.context(context):
        script.module.upgrade()
    return tuple(written)


def _record(script: Script, mark: str) -> tuple[str, ...]:
    revision = script.revision
    if script.down_revision is None:
        return (
            _CREATE,
            f"INSERT INTO alembic_version (version_num, oldest_program) VALUES ('{revision}', '{mark}')",  # noqa: S608
        )
    return (f"UPDATE alembic_version SET version_num = '{revision}', oldest_program = '{mark}'",)  # noqa: S608
