import asyncio
import sqlite3
import uuid
from pathlib import Path

import pytest

from services.user.storage import EmailTakenError, StorageError, open_sqlite
from services.user.users import new_user


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a storage may make its file."""
    return tmp_path / "users.db"


async def test_users_outlive_the_storage(path):
    """A created user is there after closing and opening the file."""
    ada = new_user("Ada", "ada@example.com")
    async with open_sqlite(path) as storage:
        await storage.create(ada)
    async with open_sqlite(path) as storage:
        assert await storage.get(ada.id) == ada


async def test_unknown_id_is_none(path):
    """An id that no user has is not an error of the storage."""
    async with open_sqlite(path) as storage:
        assert await storage.get(uuid.uuid7()) is None


async def test_email_is_taken_once(path):
    """Of many concurrent creates with one email, in any case, one succeeds."""
    users = [new_user("Ada", email) for email in ("ada@example.com", "ADA@example.com") * 10]
    async with open_sqlite(path) as storage:
        results = await asyncio.gather(*map(storage.create, users), return_exceptions=True)
        kept = await storage.page(None, 100)
    assert [type(result) for result in results].count(EmailTakenError) == 19
    assert len(kept) == 1


async def test_page_follows_the_order_of_ids(path):
    """A page begins after the id given and has no more than the limit."""
    users = [new_user("User", f"user{n}@example.com") for n in range(5)]
    async with open_sqlite(path) as storage:
        for user in reversed(users):
            await storage.create(user)
        assert await storage.page(None, 10) == users
        assert await storage.page(users[1].id, 2) == users[2:4]
        assert await storage.page(users[-1].id, 2) == []


async def test_two_storages_share_a_file(path):
    """While an old process drains, a new one already works on the same file."""
    ada = new_user("Ada", "ada@example.com")
    async with open_sqlite(path) as old, open_sqlite(path) as new:
        await old.create(ada)
        assert await new.get(ada.id) == ada


async def refused(path: Path) -> str:
    """Return the error with which `path` is refused."""
    with pytest.raises(StorageError) as caught:
        async with open_sqlite(path):
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
    async with open_sqlite(path) as storage:
        for n in range(200):
            await storage.create(new_user("User", f"user{n}@example.com"))
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xa5" * 4096
    path.write_bytes(content)
    assert str(path) in await refused(path)


async def test_newer_schema_is_refused(path):
    """A database that a later program has changed is left to that program."""
    async with open_sqlite(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "schema version 99" in await refused(path)


async def test_database_of_another_program_is_refused(path):
    """Tables that are not ours mean that the file is not ours."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invoices (id)")
    assert "schema version 0" in await refused(path)


async def test_locked_database_is_an_error_of_the_storage(path, monkeypatch):
    """A write that another process blocks for too long fails, and the next one works."""
    monkeypatch.setattr("services.user.storage._BUSY_TIMEOUT", 0.05)
    ada = new_user("Ada", "ada@example.com")
    async with open_sqlite(path) as storage:
        other = sqlite3.connect(path, autocommit=True)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            await storage.create(ada)
        other.execute("ROLLBACK")
        other.close()
        await storage.create(ada)
