import asyncio

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.user.storage import StorageError, migrate_storage, open_storage

SHORT = 4.0
"""Seconds that a call waits for a connection; a busy machine takes a part of them to make one."""


def connections() -> tuple[float | None, float | None]:
    """Return how many are used and idle."""
    used, idle = (
        REGISTRY.get_sample_value("user_database_connections", {"state": state}) for state in ("used", "idle")
    )
    return used, idle


def waits(of: str) -> float:
    """Return a value of the histogram of what calls wait for a connection."""
    return REGISTRY.get_sample_value(f"user_database_acquire_seconds_{of}") or 0


async def until(condition) -> None:
    """Wait for what only polling tells."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_pool_is_shown(postgresql_database):
    """Used and idle connections, the most that there may be, and how long calls have waited for one."""
    await migrate_storage(postgresql_database)
    config = postgresql_database.model_copy(update={"pool_size": 2, "connect_timeout": SHORT})
    admin = await asyncpg.connect(config.url)
    async with open_storage(config) as storage:
        assert connections() == (0, 0), "the probe's is not counted"
        assert REGISTRY.get_sample_value("user_database_pool_size") == 2
        before, seconds = waits("count"), waits("sum")
        async with admin.transaction():
            await admin.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            calls = [asyncio.create_task(storage.page(None, 1)) for _ in range(2)]
            await until(lambda: connections() == (2, 0))
            assert waits("count") == before + 2
            with pytest.raises(StorageError):
                await storage.page(None, 1)
        await asyncio.gather(*calls)
        assert connections() == (0, 2)
        assert waits("count") == before + 3
        assert waits("sum") - seconds >= SHORT
    await admin.close()
    assert connections() == (None, None)
