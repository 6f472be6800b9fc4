"""Migrations of PostgreSQL while the database is in use, with it and through PgBouncer."""

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from services.user.config import DatabaseConfig
from services.user.storage import StorageError, migrate_storage, schema
from services.user.storage.migrate import Step
from services.user.storage.postgresql_migration import migrate_postgresql
from services.user.storage.postgresql_outside import run_outside
from services.user.storage.postgresql_waits import Waits
from services.user.testing_pgbouncer import running_pgbouncer
from services.user.testing_releases import PATIENCE, Release

COLUMN = """
def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.Text()))
"""
INDEX = """
transactional = False

def upgrade() -> None:
    op.create_index("users_name", "users", ["name"], postgresql_concurrently=True)
"""
SLOW = """
def upgrade() -> None:
    op.execute("SELECT pg_sleep(2)")
"""
CONTRACT = """
oldest_program = "0003"

def upgrade() -> None:
    op.drop_column("users", "nickname")
"""

USER = "INSERT INTO users VALUES (gen_random_uuid(), 'Ada', $1, $1)"

IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('users_name')"


@pytest.fixture
async def migrated(postgresql_database) -> DatabaseConfig:
    """Return a database of this release, with a user."""
    await migrate_storage(postgresql_database)
    async with connected(postgresql_database.url) as connection:
        await connection.execute(USER, "ada@example.com")
    return postgresql_database


@pytest.fixture(params=["directly", "through PgBouncer"])
def url(request, postgresql, migrated):
    """Return how programs reach a database of this release."""
    if request.param == "directly":
        yield migrated.url
        return
    with running_pgbouncer(postgresql, default_pool_size=5) as bouncer:
        yield bouncer.url


@asynccontextmanager
async def connected(url: str, **settings: str):
    """Connect for the block."""
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def transaction(url: str, statement: str):
    """Have a program with the application_name `report` in a transaction; yield its process id."""
    async with connected(url, application_name="report") as connection, connection.transaction():
        await connection.execute(f"{statement}; -- CANARY")
        yield connection.get_server_pid()


class Job:
    """The command `migrate` of a release, which runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.log = ""

    async def until_logged(self, pattern: str) -> str:
        """Wait for a line that matches, and return all up to it."""
        async with asyncio.timeout(PATIENCE):
            while not re.search(pattern, self.log):
                line = await self._process.stderr.readline()
                assert line, self.log
                self.log += line.decode()
        return self.log

    async def succeeds(self) -> str:
        """Wait for its end, and return its whole log."""
        async with asyncio.timeout(PATIENCE):
            self.log += (await self._process.stderr.read()).decode()
            assert await self._process.wait() == 0, self.log
        assert "CANARY" not in self.log
        return self.log

    async def kill(self) -> None:
        """End it at once, as if its machine were gone."""
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def job(release: Release, url: str):
    """Run `migrate` during the block."""
    process = await release.start(url, "migrate")
    try:
        yield Job(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_calls_pass_while_a_migration_waits(migrated, tmp_path):
    """A migration that gets no lock lets others pass, says who blocks it, and is done once it can be."""
    release = Release(tmp_path / "next", COLUMN)
    async with job(release, migrated.url) as migration, connected(migrated.url) as client:
        async with transaction(migrated.url, "LOCK TABLE users IN ACCESS SHARE MODE") as pid:
            # A machine that stands still may look too late at who blocks a try, and say so of the next one.
            who = rf"blocked_by='pid {pid} \(postgres, report, idle in transaction, for \d+ s\)'"
            await migration.until_logged(rf"a migration waits for a lock +{who} migration=0003 seconds=\d")
            await migration.until_logged(
                rf"a migration tries again +{who} migration=0003 .*reason='got no lock'"
            )
            # It is behind the migration, if this waits at the moment; a call's deadline is some seconds.
            await client.execute(USER, "eve@example.com", timeout=10)
        assert re.search(r"migrated +migration=0003 seconds=", await migration.succeeds())


async def test_nobody_lets_a_migration_have_its_lock(migrated):
    """It fails after a time, with the one who blocks it, and without what others say to the database."""
    async with connected(migrated.url) as connection:
        await connection.execute("ALTER TABLE alembic_version DROP COLUMN oldest_program")
    async with transaction(migrated.url, "LOCK TABLE alembic_version IN ACCESS SHARE MODE") as pid:
        error = await refusal(migrated)
    assert re.search(rf"got no lock in 1 tries .*, blocked by pid {pid} ", error)
    assert "CANARY" not in error


async def refusal(migrated: DatabaseConfig) -> str:
    """Migrate in vain until the error says who is in the way: a machine that stands still looks too late."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with pytest.raises(StorageError) as caught:
                await migrate_postgresql(migrated, patience=1)
            if "blocked by someone unknown" not in str(caught.value):
                return str(caught.value)


async def test_scripts_share_the_patience(postgresql_database, monkeypatch):
    """What the first script has waited, the second does not wait once more: the Job has one deadline."""
    ready = asyncio.Event()
    async with connected(postgresql_database.url) as connection:
        await connection.execute("CREATE TABLE users ()")  # which the first script does not come to

    async def blocked(_connection: asyncpg.Connection, _statement: str, _migration: str) -> None:
        if not ready.is_set():
            ready.set()
            await asyncio.sleep(0.7)
            raise asyncpg.LockNotAvailableError
        ready.clear()

    monkeypatch.setattr(Waits, "execute", staticmethod(blocked))
    with pytest.raises(StorageError, match=r"migration 0002: got no lock in 1 tries within 2 s"):
        await migrate_postgresql(postgresql_database, patience=2.3)


async def test_another_migration_that_does_not_end(migrated):
    """It fails after a time, with the one who has the lock."""
    lock = f"SELECT pg_advisory_xact_lock({int.from_bytes(b'user.db')})"
    async with transaction(migrated.url, lock) as pid:
        with pytest.raises(
            StorageError, match=rf"another migration runs in 1 tries .*, blocked by pid {pid} "
        ):
            await migrate_postgresql(migrated, patience=0)


async def test_nobody_lets_an_index_be_made(migrated):
    """What runs outside a transaction fails after a time, too, and the next run can do it."""
    statements = ("CREATE INDEX CONCURRENTLY users_name ON users (name)",)
    index = Step("0003", statements, (), transactional=False, oldest_program=None)
    async with transaction(migrated.url, "UPDATE users SET name = 'Eve'") as pid:
        with pytest.raises(StorageError, match=rf"migration 0003: got no lock .*, blocked by pid {pid} "):
            await run_outside(migrated, Waits(migrated, patience=1), index)
    await run_outside(migrated, Waits(migrated, patience=60), index)
    await assert_index_is_valid(migrated)


async def test_contraction_before_its_release(migrated, tmp_path):
    """What ends programs that may run is refused before anything is done; an empty database has none."""
    release = Release(tmp_path / "next", COLUMN, CONTRACT)
    code, output, error = await release.run(migrated.url, "migrate")
    assert (code, output) == (3, "")
    assert error == (
        f"Error: {migrated.name}: migration 0004 ends programs of schemas before 0003, and those of "
        f"{schema.VERSION} may be running: deploy the release with schema 0003 first\n"
    )
    async with connected(migrated.url) as connection:
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == schema.VERSION
        await connection.execute("DROP TABLE alembic_version, users, idempotency_keys")
    assert (await release.run(migrated.url, "migrate"))[1].endswith(": schema none -> 0004\n")


async def test_two_jobs_make_an_index(migrated, url, tmp_path):
    """One makes it, the other one waits in a way that the index does not wait for; both succeed."""
    release = Release(tmp_path / "next", INDEX)
    async with job(release, url) as first, job(release, url) as second:
        async with transaction(migrated.url, "UPDATE users SET name = 'Eve'"):
            logs = [asyncio.create_task(each.until_logged("blocked_by='pid")) for each in (first, second)]
            await asyncio.gather(*logs)
        logs = [await each.succeeds() for each in (first, second)]
    assert sum("another migration runs" in log for log in logs) == 1
    assert sum("migrated " in log for log in logs) == 1
    await assert_index_is_valid(migrated)


async def assert_index_is_valid(migrated: DatabaseConfig) -> None:
    """Check that the index is there, and that no pooled connection has kept anything of its making."""
    async with connected(migrated.url) as connection:
        assert await connection.fetchval(IS_VALID)
        assert await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_job_that_dies_while_the_database_makes_an_index(migrated, url, tmp_path):
    """The database goes on with it; the next Job waits for the index, and not for the dead one's lock."""
    release = Release(tmp_path / "next", INDEX)
    async with AsyncExitStack() as stack:
        async with transaction(migrated.url, "UPDATE users SET name = 'Eve'"):
            first = await stack.enter_async_context(job(release, url))
            await first.until_logged("blocked_by='pid")
            await first.kill()
            second = await stack.enter_async_context(job(release, url))
            await second.until_logged("an earlier run still makes the index")
        assert "an earlier run has made the index" in await second.succeeds()
    await assert_index_is_valid(migrated)


async def test_half_an_index_is_made_again(migrated, url, tmp_path):
    """What is left of an index whose making was interrupted is dropped, and the next run makes it."""
    release = Release(tmp_path / "next", INDEX)
    async with connected(migrated.url) as connection:
        blocker = transaction(migrated.url, "UPDATE users SET name = 'Eve'")
        async with blocker, job(release, url) as first:
            await first.until_logged("blocked_by='pid")
            end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_progress_create_index"
            assert await connection.fetchval(end)
        assert await connection.fetchval(IS_VALID) is False
    async with job(release, url) as second:
        assert "an earlier run has left half an index" in await second.succeeds()
    await assert_index_is_valid(migrated)


async def test_timeouts_that_are_meant_for_calls(migrated, tmp_path):
    """A statement_timeout of the database ends no migration, in a transaction or outside one."""
    release = Release(tmp_path / "next", SLOW, SLOW_INDEX)
    async with connected(migrated.url) as connection:
        await connection.execute(SLOW_FUNCTION)
        await connection.execute("ALTER DATABASE users SET statement_timeout = '1s'")
        await connection.execute("ALTER DATABASE users SET idle_in_transaction_session_timeout = '1s'")
        await connection.execute("ALTER DATABASE users SET transaction_timeout = '1s'")
    code, output, error = await release.run(migrated.url, "migrate")
    assert (code, output.rpartition(": ")[2]) == (0, "schema 0002 -> 0004\n"), error


SLOW_FUNCTION = """
CREATE FUNCTION slow(name text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN PERFORM pg_sleep(2); RETURN name; END $$
"""
SLOW_INDEX = """
transactional = False

def upgrade() -> None:
    op.create_index("slow_name", "users", [sa.text("slow(name)")], postgresql_concurrently=True)
"""


async def test_timeout_that_a_pooler_keeps(postgresql, migrated, tmp_path):
    """Through PgBouncer a statement_timeout holds outside a transaction, which is said before."""
    release = Release(tmp_path / "next", SLOW, SLOW_INDEX)
    async with connected(migrated.url) as connection:
        await connection.execute(SLOW_FUNCTION)
        await connection.execute("ALTER DATABASE users SET statement_timeout = '1s'")
    with running_pgbouncer(postgresql) as bouncer:
        code, _, error = await release.run(bouncer.url, "migrate")
    assert code == 1
    assert "a pooler keeps the database's time limit" in error
    assert "limit='statement_timeout = 1000 ms'" in error
    assert "migration 0004: canceling statement due to statement timeout" in error


async def test_pooled_connections_keep_no_setting(postgresql, migrated, tmp_path):
    """What a migration sets for itself, no client of the pooler gets."""
    release = Release(tmp_path / "next", COLUMN, INDEX)
    with running_pgbouncer(postgresql) as bouncer:
        async with connected(bouncer.url) as before:
            assert await before.fetchval("SHOW lock_timeout") == "0"
        code, _, error = await release.run(bouncer.url, "migrate")
        assert code == 0, error
        clients = [await asyncpg.connect(bouncer.url) for _ in range(5)]
        transactions = [client.transaction() for client in clients]
        for each in transactions:
            await each.start()
        settings = [
            [await client.fetchval(f"SHOW {name}") for name in ("lock_timeout", "statement_timeout")]
            for client in clients
        ]
        for each in transactions:
            await each.rollback()
        for client in clients:
            await client.close()
    assert settings == [["0", "0"]] * 5
    await assert_index_is_valid(migrated)
