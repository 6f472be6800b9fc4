"""The databases of tests: each test that asks for one is run over SQLite and over PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.user.config import DatabaseConfig
from services.user.storage import UserStorage, migrate_storage, open_storage
from services.user.testing_postgresql import PostgreSQL, running_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Run one PostgreSQL server for all tests."""
    with running_postgresql() as server:
        yield server


@pytest.fixture
def postgresql_database(postgresql: PostgreSQL) -> DatabaseConfig:
    """Return an empty database of PostgreSQL."""
    postgresql.new_database()
    return DatabaseConfig(url=postgresql.url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseConfig:
    """Return an empty database."""
    if request.param == "sqlite":
        return DatabaseConfig(url=f"sqlite:///{tmp_path}/users.db")
    config: DatabaseConfig = request.getfixturevalue("postgresql_database")
    return config


@pytest.fixture
async def storage(database: DatabaseConfig) -> AsyncIterator[UserStorage]:
    """Open a migrated database without users."""
    await migrate_storage(database)
    async with open_storage(database) as storage:
        yield storage
