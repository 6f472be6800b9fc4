import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from services.user.config import DatabaseConfig
from services.user.storage import (
    NotMigratedError,
    SchemaError,
    StorageError,
    migrate_storage,
    open_storage,
    schema,
)
from services.user.users import new_user

# What a file has that was made before there were migrations, with a user in it.
FIRST_FILE = """
PRAGMA journal_mode = WAL;
CREATE TABLE users (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT NOT NULL,
    email_key TEXT NOT NULL UNIQUE
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""


async def execute(config: DatabaseConfig, statement: str) -> None:
    """Execute a statement as nobody who is known to the program."""
    if not config.is_postgresql:
        with closing(sqlite3.connect(config.path, autocommit=True)) as connection:
            connection.execute(statement)
        return
    connection = await asyncpg.connect(config.url)
    await connection.execute(statement)
    await connection.close()


async def set_schema(config: DatabaseConfig, version: str, oldest_program: str | None = None) -> None:
    """Let a database say what another program has made it say; without an oldest program, long ago."""
    await execute(config, f"UPDATE alembic_version SET version_num = '{version}'")  # noqa: S608
    await execute(config, "ALTER TABLE alembic_version DROP COLUMN oldest_program")
    if oldest_program:
        await execute(config, "ALTER TABLE alembic_version ADD COLUMN oldest_program VARCHAR(32)")
        await execute(config, f"UPDATE alembic_version SET oldest_program = '{oldest_program}'")  # noqa: S608


async def refusal(config: DatabaseConfig, work) -> str:
    """Return the error with which `work` refuses a database, which is named in it."""
    with pytest.raises(SchemaError) as caught:
        await work(config)
    assert str(caught.value).startswith(f"{config.name}: ")
    return str(caught.value)


async def open_and_close(config: DatabaseConfig) -> None:
    """Do what a server does at its start."""
    async with open_storage(config):
        pass


def test_version_is_that_of_the_last_script():
    """The version that the program asks for is where the scripts lead, one after the other."""
    scripts = ScriptDirectory(str(Path(schema.__file__).with_name("migrations")))
    assert scripts.get_current_head() == schema.VERSION
    versions = [script.revision for script in scripts.walk_revisions()]
    assert versions == sorted(versions, reverse=True)


async def test_migrating_twice(database):
    """The first time the schema is made, the second time nothing happens and the users stay."""
    assert await migrate_storage(database) == (None, schema.VERSION)
    async with open_storage(database) as storage:
        user = await storage.create(new_user("Ada", "ada@example.com"))
    assert await migrate_storage(database) == (schema.VERSION, schema.VERSION)
    async with open_storage(database) as storage:
        assert await storage.page(None, 10) == [user]


async def test_many_migrate_at_once(database):
    """Several that migrate at the same time do each script once, and all end when all is done."""
    found = [found for found, _ in await asyncio.gather(*[migrate_storage(database) for _ in range(5)])]
    assert found.count(None) == 1
    await open_and_close(database)


async def test_three_sqlite_servers_start_at_once(tmp_path):
    """Servers that start together on a new file all work on it."""
    config = DatabaseConfig(url=f"sqlite:///{tmp_path}/users.db")
    await asyncio.gather(*[open_and_close(config) for _ in range(3)])
    assert (await migrate_storage(config))[0] == schema.VERSION


@pytest.mark.parametrize("work", [open_and_close, migrate_storage])
async def test_newer_database_that_says_nothing_is_refused(database, work):
    """What a later program has migrated that said nothing of older ones is left to that program."""
    await migrate_storage(database)
    await set_schema(database, "0999")
    expected = f"has schema 0999; this program knows up to {schema.VERSION}: deploy a newer program"
    assert expected in await refusal(database, work)


@pytest.mark.parametrize("work", [open_and_close, migrate_storage])
async def test_newer_database_that_this_program_does_not_work_with_is_refused(database, work):
    """A database from which a later program has taken away what this one needs is left to later ones."""
    await migrate_storage(database)
    await set_schema(database, "0999", oldest_program="0998")
    expected = (
        "has schema 0999, which works with programs of schema 0998 and later; "
        f"this one has {schema.VERSION}: deploy a newer program"
    )
    assert expected in await refusal(database, work)


@pytest.mark.parametrize("oldest_program", ["0001", schema.VERSION])
async def test_newer_database_that_this_program_works_with(database, oldest_program):
    """A later schema that works with this program is served, and not migrated."""
    await migrate_storage(database)
    await set_schema(database, "0999", oldest_program)
    assert await migrate_storage(database) == ("0999", "0999")
    async with open_storage(database) as storage:
        await storage.ping()
        user = await storage.create(new_user("Ada", "ada@example.com"))
        assert await storage.page(None, 10) == [user]


async def test_contraction_while_a_server_runs(database):
    """A server is not ready any more once its database has no room for it, and says so."""
    await migrate_storage(database)
    async with open_storage(database) as storage:
        await storage.ping()
        await set_schema(database, "0999", oldest_program="0998")
        with pytest.raises(SchemaError, match="works with programs of schema 0998 and later"):
            await storage.ping()


async def test_database_of_the_program_before(database):
    """One that says nothing of older programs is served as it is; after `migrate` it says it."""
    await migrate_storage(database)
    await set_schema(database, schema.VERSION)
    if database.is_postgresql:
        await open_and_close(database)
    assert await migrate_storage(database) == (schema.VERSION, schema.VERSION)
    await execute(database, "UPDATE alembic_version SET version_num = '0999'")
    assert await migrate_storage(database) == ("0999", "0999")


async def test_server_before_the_migration_waits(postgresql_database):
    """A server does not migrate PostgreSQL by itself: it says what does, and works once that has happened."""
    async with open_storage(postgresql_database) as storage:
        with pytest.raises(NotMigratedError, match=r"has no schema yet, .*: run `server migrate` first"):
            await storage.ping()
        await migrate_storage(postgresql_database)
        await storage.ping()
        await set_schema(postgresql_database, "0001", oldest_program="0001")
        needs = f"has schema 0001, this program needs {schema.VERSION}: run `server migrate` first"
        with pytest.raises(NotMigratedError, match=needs):
            await storage.ping()


async def test_older_schema_is_migrated_on(database):
    """Users of the schema before are there in the new one."""
    await migrate_storage(database)
    async with open_storage(database) as storage:
        user = await storage.create(new_user("Ada", "ada@example.com"))
    await to_first_schema(database)
    assert await migrate_storage(database) == ("0001", schema.VERSION)
    async with open_storage(database) as storage:
        assert await storage.page(None, 10) == [user]


async def to_first_schema(config: DatabaseConfig) -> None:
    """Bring a database back to what the first script makes."""
    await set_schema(config, "0001")
    await execute(config, "DROP TABLE idempotency_keys")


async def test_file_from_before_migrations_is_adopted(tmp_path):
    """A file of the first program loses nothing: its users are there, and new ones can be created."""
    config = DatabaseConfig(url=f"sqlite:///{tmp_path}/users.db")
    ada = new_user("Ada", "ada@example.com")
    with sqlite3.connect(config.path) as connection:
        connection.executescript(FIRST_FILE)
        row = (ada.id.bytes, ada.name, ada.email, ada.email_key)
        connection.execute("INSERT INTO users VALUES (?, ?, ?, ?)", row)
    async with open_storage(config) as storage:
        eve = await storage.create(new_user("Eve", "eve@example.com"))
        assert await storage.page(None, 10) == [ada, eve]
    assert (await migrate_storage(config))[0] == schema.VERSION


async def test_first_script_makes_what_the_first_program_did(tmp_path):
    """An adopted file and a new one have the same tables, column by column."""
    new, adopted = (DatabaseConfig(url=f"sqlite:///{tmp_path}/{name}.db") for name in ("new", "adopted"))
    with sqlite3.connect(adopted.path) as connection:
        connection.executescript(FIRST_FILE)
    schemas = []
    for config in (new, adopted):
        await migrate_storage(config)
        with sqlite3.connect(config.path) as connection:
            queries = ("table_xinfo(users)", "index_list(users)", "table_list(users)", "user_version")
            schemas.append([connection.execute(f"PRAGMA {query}").fetchall() for query in queries])
    assert schemas[0] == schemas[1]


async def test_failed_migration_leaves_nothing(postgresql_database):
    """If a table of that name is already there, the script changes nothing, and the error names both."""
    await execute(postgresql_database, "CREATE TABLE idempotency_keys (other text)")
    with pytest.raises(StorageError, match=r"/users: migration 0002: relation .* already exists$"):
        await migrate_storage(postgresql_database)
    await execute(postgresql_database, "DROP TABLE idempotency_keys")
    assert await migrate_storage(postgresql_database) == ("0001", schema.VERSION)


async def test_postgresql_of_another_encoding_is_refused(postgresql):
    """A database that can't hold every name is refused before it holds any."""
    connection = await asyncpg.connect(postgresql.url)
    await connection.execute("DROP DATABASE IF EXISTS latin")
    await connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    await connection.close()
    config = DatabaseConfig(url=postgresql.url.removesuffix("/users") + "/latin")
    assert "encoding is LATIN1; create it with ENCODING 'UTF8'" in await refusal(config, migrate_storage)


async def test_start_imports_no_alembic(database):
    """A server whose database is up to date does not pay for the import of Alembic."""
    await migrate_storage(database)
    code = (
        "import asyncio, sys\n"
        "from services.user.config import DatabaseConfig\n"
        "from services.user.storage import open_storage\n"
        "async def main():\n"
        f"    async with open_storage(DatabaseConfig(url={database.url!r})): pass\n"
        "asyncio.run(main())\n"
        "assert not {'alembic', 'sqlalchemy'} & set(sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert await process.wait() == 0
