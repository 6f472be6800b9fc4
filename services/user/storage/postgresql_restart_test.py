import asyncio
import itertools
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from services.user.config import DatabaseConfig
from services.user.idempotency import IdempotencyKey
from services.user.storage import EmailTakenError, StorageError, migrate_storage, open_storage
from services.user.testing_pgbouncer import running_pgbouncer
from services.user.users import new_user

WINDOW = 30.0
"""Seconds that a restart may take in these tests, on a busy machine."""

SHORT = 4.0
"""Seconds that it may where the database stays away; a busy machine takes a part of them to connect."""


@asynccontextmanager
async def opened(database, connect_timeout=WINDOW):
    """Open the migrated database."""
    await migrate_storage(database)
    async with open_storage(database.model_copy(update={"connect_timeout": connect_timeout})) as storage:
        yield storage


async def check_restarts(storage, *restarts):
    """Restart things while eight callers use the storage: all are answered, and each user is there once."""
    numbers = itertools.count()
    created = []
    ended = asyncio.Event()

    async def work():
        while not ended.is_set():
            number = next(numbers)
            key = IdempotencyKey(f"key{number}", b"request") if number % 2 else None
            user = await storage.create(new_user("Ada", f"ada{number}@example.com"), key)
            created.append(user.id)
            assert await storage.get(user.id) == user
            assert await storage.page(None, 1)

    async with asyncio.TaskGroup() as workers:
        for _ in range(8):
            workers.create_task(work())
        for restart in restarts:
            await asyncio.sleep(0.2)
            await asyncio.to_thread(restart)
        await asyncio.sleep(0.2)
        ended.set()
    assert sorted(user.id for user in await storage.page(None, 100_000)) == sorted(created)


async def test_calls_outlast_a_restart(postgresql, postgresql_database):
    """What a restart meets is answered, creates without a key too, and each user is there once."""
    async with opened(postgresql_database) as storage:
        await check_restarts(storage, postgresql.restart, postgresql.restart)


async def test_calls_outlast_restarts_behind_a_pooler(postgresql, postgresql_database):
    """PostgreSQL's restart is outlasted through PgBouncer too, and so is PgBouncer's own."""
    await migrate_storage(postgresql_database)
    with running_pgbouncer(postgresql, server_login_retry=1) as bouncer:
        config = DatabaseConfig(url=bouncer.url, connect_timeout=WINDOW)
        async with open_storage(config) as storage:
            await check_restarts(storage, postgresql.restart, bouncer.restart)


async def test_first_call_after_a_restart(postgresql, postgresql_database):
    """A restart while nobody calls is nothing to the calls that come later, many at once."""
    async with opened(postgresql_database) as storage:
        ada = await storage.create(new_user("Ada", "ada@example.com"))
        await asyncio.gather(*[storage.get(ada.id) for _ in range(20)])
        await asyncio.to_thread(postgresql.restart)
        assert await asyncio.gather(*[storage.get(ada.id) for _ in range(20)]) == [ada] * 20


async def test_restart_before_the_first_call(postgresql, postgresql_database):
    """A call outlasts a restart although none was answered before: opening has found the database up."""
    async with opened(postgresql_database) as storage:
        with postgresql.stopped():
            call = asyncio.create_task(storage.get(new_user("Ada", "ada@example.com").id))
            await asyncio.wait([call], timeout=SHORT)
        assert await call is None


async def test_create_that_is_done_twice(postgresql_database):
    """A create whose answer was lost, done again, has its user once; another one's email is still taken."""
    async with opened(postgresql_database) as storage:
        ada = new_user("Ada", "ada@example.com")
        assert await storage.create(ada) == await storage.create(ada) == ada
        assert await storage.page(None, 10) == [ada]
        with pytest.raises(EmailTakenError):
            await storage.create(new_user("Bob", "ada@example.com"))


async def test_database_that_stays_away(postgresql, postgresql_database):
    """What a restart may take is waited for once; then calls fail at once, and work when it is back."""
    async with opened(postgresql_database, SHORT) as storage:
        ada = await storage.create(new_user("Ada", "ada@example.com"))
        with postgresql.stopped():
            calls = [storage.get(ada.id) for _ in range(20)]
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(error) for error in errors] == [StorageError] * 20
            began = time.monotonic()
            for _ in range(20):
                with pytest.raises(StorageError):
                    await storage.get(ada.id)
            assert time.monotonic() - began < 10 * SHORT
        assert await storage.get(ada.id) == ada


async def test_end_while_calls_wait(postgresql, postgresql_database):
    """A storage whose server ends does not wait with its calls for the database."""
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(opened(postgresql_database))
        ada = await storage.create(new_user("Ada", "ada@example.com"))
        with postgresql.stopped():
            call = asyncio.create_task(storage.get(ada.id))
            assert not (await asyncio.wait([call], timeout=1))[0]
            await stack.aclose()
            with pytest.raises(asyncio.CancelledError):
                await call
