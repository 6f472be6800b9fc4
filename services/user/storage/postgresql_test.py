import asyncio
import itertools
import socket
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from services.user.config import DatabaseConfig
from services.user.idempotency import IdempotencyKey
from services.user.storage import NotMigratedError, StorageError, migrate_storage, open_storage
from services.user.testing_postgresql import running_standby
from services.user.users import new_user

SHORT, LONG = 4.0, 60.0
"""Seconds to wait for the database: what a test waits for, and what it never does.

A busy machine takes a part of SHORT to make a connection.
"""

PATIENCE = 15
"""Seconds that a busy machine may need for what is over after SHORT."""


@pytest.fixture
async def database(postgresql_database) -> DatabaseConfig:
    """Return a migrated database without users."""
    await migrate_storage(postgresql_database)
    return postgresql_database.model_copy(
        update={"pool_size": 2, "connect_timeout": LONG, "statement_timeout": LONG}
    )


@asynccontextmanager
async def administrator(config: DatabaseConfig):
    """Yield a connection beside the service's."""
    connection = await asyncpg.connect(config.url, command_timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def locked_users(config: DatabaseConfig):
    """Let every statement over users wait until the block ends; yield a connection to look on.

    It is another one than the lock's, since in a transaction pg_stat_activity does not change.
    """
    async with administrator(config) as locking, administrator(config) as admin, locking.transaction():
        await locking.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        yield admin


async def service_connections(connection: asyncpg.Connection, condition: str = "true") -> int:
    """Return how many connections the service has, as the database counts them."""
    return await connection.fetchval(
        f"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'user-service' AND {condition}"  # noqa: S608
    )


async def until(condition) -> None:
    """Wait until what only polling tells is true."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_statement_that_takes_too_long_is_ended(database):
    """After the statement timeout the call fails, and the database does not work on it any more."""
    config = database.model_copy(update={"statement_timeout": SHORT})
    async with open_storage(config) as storage, locked_users(config) as admin:
        with pytest.raises(StorageError, match=r"statement timeout|statement_timeout"):
            await storage.create(new_user("Ada", "ada@example.com"))
        await until_idle(admin)


async def until_idle(admin: asyncpg.Connection) -> None:
    """Wait until the database works on nothing of the service any more."""

    async def is_idle() -> bool:
        return await service_connections(admin, "state = 'active'") == 0

    await until(is_idle)


async def test_cancelled_call_ends_its_statement(database):
    """A call whose deadline has passed leaves no statement behind, long before the statement timeout."""
    async with open_storage(database) as storage, locked_users(database) as admin:
        call = asyncio.create_task(
            storage.create(new_user("Ada", "ada@example.com"), IdempotencyKey("k", b""))
        )
        await until(lambda: service_connections(admin, "wait_event_type = 'Lock'"))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_idle(admin)


async def test_exhausted_pool_is_an_error_in_time(database):
    """When all connections are taken others wait for the connect timeout, and the probe not at all."""
    config = database.model_copy(update={"connect_timeout": SHORT})
    async with open_storage(config) as storage:
        async with locked_users(config) as admin:
            calls = [asyncio.create_task(storage.page(None, 1)) for _ in range(2)]
            await until(lambda: service_connections(admin, "wait_event_type = 'Lock'"))
            start = time.monotonic()
            waiting = [
                storage.page(None, 1),
                storage.create(new_user("Ada", "ada@example.com")),
            ]
            errors = await asyncio.gather(*waiting, return_exceptions=True)
            assert time.monotonic() - start < PATIENCE
            assert [type(error) for error in errors] == [StorageError] * 2
            await storage.ping()
        await asyncio.gather(*calls)
        await storage.ping()


async def test_pool_is_bounded(database):
    """However many calls there are, the database sees no more connections than the pool's and the probe's."""
    async with open_storage(database) as storage:
        async with locked_users(database) as admin:
            calls = asyncio.gather(*[storage.page(None, 1) for _ in range(200)], return_exceptions=True)
            while await service_connections(admin) < 3:
                pass
            counts = [await service_connections(admin) for _ in range(20)]
        await calls
    assert set(counts) == {3}


async def test_database_that_restarts(database, postgresql):
    """While it is down calls fail in time; when it is there again they work, without a new storage."""
    config = database.model_copy(update={"connect_timeout": SHORT})
    async with open_storage(config) as storage:
        ada = await storage.create(new_user("Ada", "ada@example.com"))
        with postgresql.stopped():
            for _ in range(5):
                with pytest.raises(StorageError):
                    await storage.get(ada.id)
            with pytest.raises(StorageError):
                await storage.ping()
        for _ in range(5):
            assert await storage.get(ada.id) == ada
        await storage.ping()


async def test_idle_connections_that_were_cut(database):
    """Connections that broke while nobody used them are replaced, without a new storage."""
    async with open_storage(database) as storage, administrator(database) as admin:
        await asyncio.gather(*[storage.ping() for _ in range(10)])
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'user-service'"
        )

        async def works() -> bool:
            # Until the end of a connection has arrived, a call may still meet it.
            pings = await asyncio.gather(*[storage.ping() for _ in range(10)], return_exceptions=True)
            assert all(error is None or isinstance(error, StorageError) for error in pings)
            return not any(pings)

        await until(works)


async def test_start_before_the_database(database, postgresql):
    """A storage opens without its database, is not ready, and works once the database is there."""
    async with AsyncExitStack() as stack:
        with postgresql.stopped():
            storage = await stack.enter_async_context(open_storage(database))
            with pytest.raises(StorageError):
                await storage.ping()
        await storage.ping()
        await storage.create(new_user("Ada", "ada@example.com"))


async def test_wrong_schema_that_is_seen_late(postgresql, postgresql_database):
    """If the database was down at the start its schema is checked later: not ready until it is right."""
    async with AsyncExitStack() as stack:
        with postgresql.stopped():
            storage = await stack.enter_async_context(open_storage(postgresql_database))
        with pytest.raises(NotMigratedError, match="run `server migrate` first"):
            await storage.ping()
        with pytest.raises(StorageError):
            await storage.create(new_user("Ada", "ada@example.com"))
        await migrate_storage(postgresql_database)
        await storage.ping()
        await storage.create(new_user("Ada", "ada@example.com"))


async def test_settings_that_asyncpg_refuses():
    """A parameter of the URL that can't be right is an error at the start, not a wait for the database."""
    config = DatabaseConfig(url="postgresql://ada:secret@127.0.0.1:1/users?sslmode=perhaps")
    with pytest.raises(StorageError, match="sslmode") as caught:
        async with open_storage(config):
            pass
    assert "secret" not in str(caught.value)


async def test_end_while_the_database_does_not_answer(database):
    """The storage closes in time though a statement of it still waits."""
    config = database.model_copy(update={"connect_timeout": SHORT})
    async with locked_users(config) as admin:
        async with open_storage(config) as storage:
            call = asyncio.create_task(storage.page(None, 1))
            await until(lambda: service_connections(admin, "wait_event_type = 'Lock'"))
            start = time.monotonic()
        assert time.monotonic() - start < PATIENCE
        with pytest.raises(StorageError):
            await call


HOSTS = {
    "": "primary",
    "?target_session_attrs=read-write": "primary",
    "?target_session_attrs=primary": "primary",
    "?target_session_attrs=any": "first",
    "?target_session_attrs=standby": "standby",
    "?target_session_attrs=read-only": "standby",
    "?target_session_attrs=prefer-standby": "standby",
}


async def kind_of_host(url: str) -> str:
    """Return which of the hosts of a URL a storage works with."""
    async with open_storage(DatabaseConfig(url=url)) as storage:
        try:
            await storage.create(new_user("Ada", f"{uuid.uuid4()}@example.com"))
        except StorageError as error:
            assert "read-only" in str(error)
            return "standby"
    return "primary"


async def test_host_that_the_url_asks_for(postgresql, database):
    """Of several hosts the first that is what target_session_attrs asks for is used, or that takes writes."""
    del database  # its tables are there
    with running_standby(postgresql) as standby:
        servers = {
            kind: server.url.rpartition("@")[2].partition("/")[0]
            for kind, server in {"primary": postgresql, "standby": standby}.items()
        }
        for first, second in itertools.permutations(servers):
            url = f"postgresql://postgres@{servers[first]},{servers[second]}/users"
            for attributes, expected in HOSTS.items():
                assert await kind_of_host(url + attributes) == (first if expected == "first" else expected)


async def test_host_that_does_not_answer_leaves_time_for_the_next(database):
    """A first host that takes connections and says nothing does not keep the second one from being used."""
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        port = silent.getsockname()[1]
        url = database.url.replace("@", f"@127.0.0.1:{port},")
        config = database.model_copy(update={"url": url, "connect_timeout": 2 * SHORT})
        async with open_storage(config) as storage:
            await storage.create(new_user("Ada", "ada@example.com"))


@pytest.mark.parametrize("attributes", ["perhaps", "PRIMARY", ""])
async def test_unknown_target_session_attrs(attributes):
    """What no host can be is an error at the start that says what there is."""
    config = DatabaseConfig(
        url=f"postgresql://ada:secret@127.0.0.1:1/users?target_session_attrs={attributes}"
    )
    with pytest.raises(StorageError, match="must be one of any, read-write") as caught:
        async with open_storage(config):
            pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM alembic_version", "alembic_version has no row"),
        ("INSERT INTO alembic_version VALUES ('0001', NULL)", "another program"),
        ("ALTER TABLE alembic_version RENAME version_num TO x", "another program"),
        ("DROP TABLE users", "no table users"),
    ],
)
async def test_alembic_version_that_is_not_as_we_leave_it(database, change, reason):
    """It says what schema the database has, or whose it is: readiness and `migrate` tell."""
    async with open_storage(database) as storage:
        async with administrator(database) as admin:
            await admin.execute(change)
        with pytest.raises(StorageError, match=reason):
            await storage.ping()
    with pytest.raises(StorageError, match=reason):
        await migrate_storage(database)


async def test_idle_connection_of_the_probe_that_was_closed(database):
    """Databases and poolers have limits for it; that is no failure."""
    async with open_storage(database) as storage, administrator(database) as admin:
        await storage.ping()
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'user-service'"
        )
        await until(lambda: _is_zero(service_connections(admin)))
        await asyncio.sleep(0.1)  # until the end of the connection is here
        await storage.ping()


async def _is_zero(count) -> bool:
    return await count == 0


async def test_rows_are_not_in_errors(database):
    """The log is not to have names and addresses, which PostgreSQL says in details."""
    async with open_storage(database) as storage:
        async with administrator(database) as admin:
            await admin.execute("ALTER TABLE users ADD CHECK (name <> 'Ada')")
        with pytest.raises(StorageError, match="check constraint") as caught:
            await storage.create(new_user("Ada", "ada@example.com"))
    assert "ada@" not in str(caught.value)
