import sqlite3
from pathlib import Path

import pytest

from services.user.config import DatabaseConfig
from services.user.storage import StorageError, open_storage
from services.user.users import new_user


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a storage may make its file."""
    return tmp_path / "users.db"


def opened(path: Path, statement_timeout: str = "10s"):
    """Open the users in a file."""
    return open_storage(DatabaseConfig(url=f"sqlite:///{path}", statement_timeout=statement_timeout))


async def refused(path: Path) -> str:
    """Return the error with which `path` is refused."""
    with pytest.raises(StorageError) as caught:
        async with opened(path):
            pass
    return str(caught.value)


async def test_missing_folder_is_refused(tmp_path):
    """A path in a folder that does not exist is named in the error, and nothing is made."""
    path = tmp_path / "missing" / "users.db"
    assert str(path) in await refused(path)
    assert not path.parent.exists()


async def test_file_that_is_no_database_is_kept(path):
    """A file of something else is refused and stays as it is."""
    path.write_bytes(b"precious " * 1000)
    assert "not a database" in await refused(path)
    assert path.read_bytes() == b"precious " * 1000


async def test_damaged_database_is_refused(path):
    """A page of nonsense inside the file is found when it is opened."""
    async with opened(path) as storage:
        for n in range(200):
            await storage.create(new_user("User", f"user{n}@example.com"))
    content = bytearray(path.read_bytes())
    content[-12288:-8192] = b"\xa5" * 4096
    path.write_bytes(content)
    assert f"{path}: is damaged" in await refused(path)


async def test_database_of_another_program_is_refused(path):
    """Tables that are not ours mean that the file is not ours; it stays as it is."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invoices (id)")
    assert "another program; it has the table 'invoices'" in await refused(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("invoices",)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DELETE FROM alembic_version", "alembic_version has no row"),
        ("INSERT INTO alembic_version VALUES ('0001', NULL)", "another program"),
        ("UPDATE alembic_version SET version_num = ''", "another program"),
        ("DROP TABLE users", "no table users"),
    ],
)
async def test_alembic_version_that_is_not_as_we_leave_it(path, change, reason):
    """It says what schema the file has, or whose the file is: the error tells."""
    async with opened(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    assert reason in await refused(path)


async def test_view_with_the_name_of_our_table(path):
    """The first script makes its table unless it is there; a view is not it."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE VIEW users AS SELECT 1")
    assert "another program" in await refused(path)


async def test_locked_database_is_an_error_of_the_storage(path):
    """A write that another process blocks for too long fails, and the next one works."""
    ada = new_user("Ada", "ada@example.com")
    async with opened(path, statement_timeout="50ms") as storage:
        other = sqlite3.connect(path, autocommit=True)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            await storage.create(ada)
        await storage.ping()  # who only reads is not disturbed
        other.execute("ROLLBACK")
        other.close()
        await storage.create(ada)


async def test_unreadable_database_is_not_ready(path):
    """When the file becomes nonsense, the storage says so."""
    async with opened(path) as storage:
        await storage.create(new_user("Ada", "ada@example.com"))
        path.write_bytes(b"\xa5" * path.stat().st_size)
        path.with_suffix(".db-wal").write_bytes(b"")
        path.with_suffix(".db-shm").unlink()
        with pytest.raises(StorageError, match=r"users\.db: "):
            await storage.ping()
