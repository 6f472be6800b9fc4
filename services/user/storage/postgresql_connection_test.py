import asyncio
import socket
import time
import uuid
from urllib.parse import urlsplit

import asyncpg
import pytest

from services.user.config import DatabaseConfig
from services.user.idempotency import IdempotencyKey
from services.user.storage import StorageError, UserStorage, migrate_storage, open_storage
from services.user.storage.postgresql_connection import Connector
from services.user.testing_pgbouncer import running_pgbouncer
from services.user.users import User, new_user

CALLS = 16
"""At a time, so that a pool opens its connections all at once."""


async def create(storage: UserStorage) -> None:
    """Create a user, with a key, as most do."""
    email = f"{uuid.uuid4()}@example.com"
    user: User = new_user("Ada", email)
    await storage.create(user, IdempotencyKey(email, b""))
    assert await storage.get(user.id) == user


async def test_pool_that_meets_a_pooler_with_many_calls_at_once(postgresql, postgresql_database):
    """No connection keeps statements in a session that is shared, however many are opened at a time."""
    await migrate_storage(postgresql_database)
    settings = {"max_prepared_statements": 0, "default_pool_size": 2}
    with running_pgbouncer(postgresql, **settings) as bouncer:
        async with open_storage(DatabaseConfig(url=bouncer.url)) as storage:
            for _ in range(5):
                await asyncio.gather(*[create(storage) for _ in range(CALLS)])
        others = [await asyncpg.connect(bouncer.url, statement_cache_size=0) for _ in range(2)]
        transactions = [other.transaction() for other in others]
        for other, transaction in zip(others, transactions, strict=True):
            await transaction.start()  # each has a session of its own now
            left = "SELECT name FROM pg_prepared_statements WHERE name <> ''"
            assert await other.fetch(left) == []
        for other, transaction in zip(others, transactions, strict=True):
            await transaction.rollback()
            await other.close()


async def test_host_that_says_nothing_costs_its_time_once(postgresql, postgresql_database):
    """Once it is known which host is right, it is asked first."""
    await migrate_storage(postgresql_database)
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        hosts = f"@127.0.0.1:{black_hole.getsockname()[1]},127.0.0.1"
        url = postgresql.url.replace("@127.0.0.1", hosts)
        async with open_storage(DatabaseConfig(url=url, connect_timeout=12)) as storage:
            await storage.page(None, 1)
            began = time.monotonic()
            await asyncio.gather(*[storage.page(None, 1) for _ in range(5)])
            assert time.monotonic() - began < 5  # and not the 6 of its share


async def test_default_port_of_several_hosts(postgresql, postgresql_database, monkeypatch):
    """PGPORT may be empty, which is none, or what Kubernetes makes of a Service with that name."""
    await migrate_storage(postgresql_database)
    url = postgresql.url.replace("/users", ",127.0.0.1/users")
    monkeypatch.setenv("PGPORT", "")
    async with open_storage(DatabaseConfig(url=url)) as storage:
        await storage.page(None, 1)
    monkeypatch.setenv("PGPORT", "tcp://10.0.0.1:5432")
    config = DatabaseConfig(url="postgresql://postgres@127.0.0.1,localhost/users")
    with pytest.raises(StorageError, match="PGPORT"):
        async with open_storage(config):
            pass
    with pytest.raises(StorageError, match="PGPORT"):
        await migrate_storage(config)


@pytest.mark.parametrize("where", ["parameters", "variables"])
async def test_several_hosts_that_are_not_in_front(postgresql, postgresql_database, monkeypatch, where):
    """Each has its turn, as libpq gives it one, wherever they are named."""
    await migrate_storage(postgresql_database)
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        ports = f"{black_hole.getsockname()[1]},{urlsplit(postgresql.url).port}"
        hosts = "127.0.0.1,localhost"
        url = "postgresql://postgres@/users"
        if where == "parameters":
            url += f"?host={hosts}&port={ports}"
        else:
            monkeypatch.setenv("PGHOST", hosts)
            monkeypatch.setenv("PGPORT", ports)
        async with open_storage(DatabaseConfig(url=url, connect_timeout=8)) as storage:
            await storage.ping()
            await storage.page(None, 1)


async def test_connection_to_a_host_that_hangs_is_closed(postgresql, postgresql_database):
    """The pool closes those that are replaced in tasks whose errors would be tracebacks in the log."""
    connection = await Connector(postgresql_database, None).connect()
    with postgresql.paused():
        await connection.close(timeout=0.1)
    assert connection.is_closed()
