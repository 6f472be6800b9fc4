"""The databases that faults happen to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.user.testing_postgresql import PostgreSQL, running_postgresql
from tests.programs import migrate


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    """Run one PostgreSQL server for the tests of a file."""
    with running_postgresql() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> str:
    """Return the URL of a database with the service's tables and no users."""
    postgresql.new_database()
    migrate(postgresql.url)
    return postgresql.url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Return the URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/users.db"
