"""What holds for users wherever they are kept."""

import asyncio
import sqlite3
import uuid
from collections import Counter

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.user.config import DatabaseConfig
from services.user.idempotency import IdempotencyKey
from services.user.storage import EmailTakenError, KeyReusedError, UserStorage, open_storage
from services.user.users import User, new_user

KEY = IdempotencyKey("7d1f", b"the first request")


def some_users(count: int) -> list[User]:
    """Return new users, none of which is kept yet."""
    return [new_user("User", f"user{n}@example.com") for n in range(count)]


async def in_database(config: DatabaseConfig, sqlite: str, postgresql: str) -> list[tuple]:
    """Run a statement in the database itself, as only tests do; return its rows."""
    if not config.is_postgresql:
        with sqlite3.connect(config.path, timeout=10) as connection:
            return connection.execute(sqlite).fetchall()
    connection = await asyncpg.connect(config.url, command_timeout=10)
    try:
        return [tuple(row) for row in await connection.fetch(postgresql)]
    finally:
        await connection.close()


async def make_keys_older(config: DatabaseConfig, hours: int) -> None:
    """Let time pass for the idempotency keys."""
    await in_database(
        config,
        f"UPDATE idempotency_keys SET created_at = created_at - {hours} * 3600",  # noqa: S608
        f"UPDATE idempotency_keys SET created_at = created_at - interval '{hours} hours'",  # noqa: S608
    )


async def test_users_outlive_the_storage(storage, database):
    """A created user is there, as it was, after closing and opening the database."""
    user = await storage.create(new_user("Ada 李小龍 😀", "ada@example.com"))
    async with open_storage(database) as reopened:
        assert await reopened.get(user.id) == user


async def test_unknown_id_is_none(storage):
    """An id that no user has is not an error of the storage."""
    assert await storage.get(uuid.uuid7()) is None


async def test_email_is_taken_once(storage):
    """Of many concurrent creates with one email, in any case, one succeeds."""
    users = [new_user("Ada", email) for email in ("ada@example.com", "ADA@example.com") * 10]
    results = await asyncio.gather(*map(storage.create, users), return_exceptions=True)
    assert [type(result) for result in results].count(EmailTakenError) == 19
    assert len(await storage.page(None, 100)) == 1


async def test_page_follows_the_order_of_ids(storage):
    """A page begins after the id given and has no more than the limit."""
    users = some_users(5)
    for user in reversed(users):
        await storage.create(user)
    assert await storage.page(None, 10) == users
    assert await storage.page(users[1].id, 2) == users[2:4]
    assert await storage.page(users[-1].id, 2) == []


async def test_ids_sort_as_bytes_do(storage):
    """The order of ids is that of their 16 bytes, in which a later UUIDv7 is larger."""
    ids = sorted(uuid.UUID(int=(n << 120) | n) for n in (1, 0x0A, 0x7F, 0x80, 0xA0, 0xFF))
    for n, user_id in enumerate(reversed(ids)):
        await storage.create(User(user_id, "User", f"user{n}@example.com"))
    assert [user.id for user in await storage.page(None, 10)] == ids


async def test_pages_under_inserts_list_each_user_once(storage):
    """Whoever existed before the first page is listed once, while others are created all the time."""
    before = some_users(60)
    for user in before:
        await storage.create(user)

    async def create_more() -> None:
        for n in range(120):
            await storage.create(new_user("Late", f"late{n}@example.com"))

    creating = asyncio.create_task(create_more())
    listed: list[User] = []
    while page := await storage.page(listed[-1].id if listed else None, 7):
        listed += page
    await creating
    assert Counter(listed).most_common(1)[0][1] == 1
    assert set(before) <= set(listed)


async def test_page_leaves_nothing_open(storage, database):
    """After a page, however slowly it is used, others can lock the table for a change of the schema."""
    await storage.create(new_user("Ada", "ada@example.com"))
    await storage.page(None, 10)
    await in_database(
        database, "ALTER TABLE users ADD COLUMN extra TEXT", "ALTER TABLE users ADD COLUMN extra text"
    )


async def test_two_storages_share_a_database(storage, database):
    """While an old process drains, a new one already works on the same users."""
    async with open_storage(database) as other:
        user = await storage.create(new_user("Ada", "ada@example.com"))
        assert await other.get(user.id) == user


async def test_ping_of_a_working_storage(storage):
    """A storage that works is ready, and nothing is changed by asking."""
    await storage.ping()
    assert await storage.page(None, 1) == []


async def test_repeated_create_returns_the_first_user(storage, database):
    """The same key with the same request is the same create, for other processes too."""
    ada = await storage.create(new_user("Ada", "ada@example.com"), KEY)
    assert await storage.create(new_user("Ada", "ada@example.com"), KEY) == ada
    async with open_storage(database) as other:
        assert await other.create(new_user("Ada", "ada@example.com"), KEY) == ada
    assert await storage.page(None, 10) == [ada]


async def test_concurrent_creates_with_one_key_are_one(storage, database):
    """However many calls come at once, over two processes, one user is created and all get it."""
    async with open_storage(database) as other:
        calls = [which.create(new_user("Ada", "ada@example.com"), KEY) for which in (storage, other) * 10]
        users = await asyncio.gather(*calls)
    assert len(set(users)) == 1
    assert await storage.page(None, 10) == users[:1]


async def test_concurrent_creates_have_each_their_own_result(storage):
    """Of many creates at once each has the result that it would have alone."""
    known = await storage.create(new_user("Known", "known@example.com"), KEY)
    new = some_users(40)
    creates = [(user, IdempotencyKey(f"key{n}", b"")) for n, user in enumerate(new)]
    taken = [(new_user("Eve", "KNOWN@example.com"), IdempotencyKey(f"eve{n}", b"")) for n in range(3)]
    reused = (new_user("Mallory", "mallory@example.com"), IdempotencyKey(KEY.key, b"another request"))
    again = (new_user("Known", "known@example.com"), KEY)
    calls = [*creates[:20], *taken, reused, again, *creates[20:], again]
    results = await asyncio.gather(*(storage.create(*call) for call in calls), return_exceptions=True)
    assert results[:20] + results[25:45] == new
    assert [type(result) for result in results[20:24]] == [EmailTakenError] * 3 + [KeyReusedError]
    assert [results[24], results[45]] == [known, known]
    assert await storage.page(None, 100) == [known, *new]


async def test_users_that_are_there_are_created_again(storage):
    """A repeated import has the users of the first with its keys, and none of them with others."""

    def creates(prefix):
        keys = (IdempotencyKey(f"{prefix}{n}", b"") for n in range(100))
        return [storage.create(user, key) for user, key in zip(some_users(100), keys, strict=True)]

    created = await asyncio.gather(*creates("a"))
    assert await asyncio.gather(*creates("a")) == created
    both = [*creates("a"), *creates("b")]
    results = await asyncio.gather(*both, return_exceptions=True)
    assert results[:100] == created
    assert {type(result) for result in results[100:]} == {EmailTakenError}
    assert await storage.page(None, 200) == created


async def test_processes_that_create_the_same_users_in_other_orders(storage, database):
    """Two that have the same emails under other keys do not deadlock, and each email is one's."""
    users, others = some_users(200), some_users(200)
    async with open_storage(database) as other:
        calls = [
            *(storage.create(user, IdempotencyKey(f"a{n:03}", b"")) for n, user in enumerate(users)),
            *(other.create(user, IdempotencyKey(f"b{n:03}", b"")) for n, user in enumerate(others[::-1])),
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
    created = [result for result in results if isinstance(result, User)]
    assert {type(result) for result in results} == {User, EmailTakenError}
    assert sorted(user.email for user in created) == sorted(user.email for user in users)


async def test_key_with_another_request_is_refused(storage):
    """A key that stands for one request can't stand for another; the first is still known."""
    ada = await storage.create(new_user("Ada", "ada@example.com"), KEY)
    with pytest.raises(KeyReusedError):
        await storage.create(new_user("Eve", "eve@example.com"), IdempotencyKey(KEY.key, b"another request"))
    assert await storage.page(None, 10) == [ada]
    assert await storage.create(new_user("Ada", "ada@example.com"), KEY) == ada


async def test_failed_create_keeps_no_key(storage):
    """A create that failed was none: its key may be used for the create that is right."""
    await storage.create(new_user("Ada", "ada@example.com"))
    with pytest.raises(EmailTakenError):
        await storage.create(new_user("Ada", "ada@example.com"), KEY)
    other = IdempotencyKey(KEY.key, b"another request")
    eve = await storage.create(new_user("Eve", "eve@example.com"), other)
    assert await storage.create(new_user("Eve", "eve@example.com"), other) == eve


async def test_key_is_known_for_24_hours(storage, database):
    """A key of 23 hours ago is known, one of 24 hours ago is as if it had never been there."""
    ada = await storage.create(new_user("Ada", "ada@example.com"), KEY)
    await make_keys_older(database, hours=23)
    assert await storage.create(new_user("Ada", "ada@example.com"), KEY) == ada
    await make_keys_older(database, hours=1)
    other = IdempotencyKey(KEY.key, b"another request")
    eve = await storage.create(new_user("Eve", "eve@example.com"), other)
    assert await storage.create(new_user("Eve", "eve@example.com"), other) == eve
    assert await storage.page(None, 10) == [ada, eve]


async def test_expired_keys_are_deleted(storage, database):
    """The keys that are kept are those of the last day: each new one takes two old ones with it."""
    for n, user in enumerate(some_users(10)):
        await storage.create(user, IdempotencyKey(f"old{n}", b""))
    await make_keys_older(database, hours=25)
    for n in range(5):
        await storage.create(new_user("New", f"new{n}@example.com"), IdempotencyKey(f"new{n}", b""))
    count = "SELECT key FROM idempotency_keys ORDER BY key"
    assert await in_database(database, count, count) == [(f"new{n}",) for n in range(5)]


async def test_expired_key_of_concurrent_creates(storage, database):
    """Calls that find their key expired, and the keys of others to delete, are one create each."""
    for n, user in enumerate(some_users(10)):
        await storage.create(user, IdempotencyKey(f"key{n}", b""))
    await make_keys_older(database, hours=25)
    calls = [
        storage.create(new_user("New", f"new{n}@example.com"), IdempotencyKey(f"key{n}", b""))
        for n in list(range(10)) * 3
    ]
    users = await asyncio.gather(*calls)
    assert len(set(users)) == 10
    assert len(await storage.page(None, 100)) == 20


async def test_cancelled_create_happens_whole_or_not_at_all(storage):
    """Whenever a call is cancelled, its user can be created with its key afterwards, once."""
    users = some_users(30)
    for n, user in enumerate(users):
        key = IdempotencyKey(f"key{n}", b"")
        call = asyncio.create_task(storage.create(user, key))
        for _ in range(n):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await storage.create(user, key) == user
    assert await storage.page(None, 100) == users


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(exclude_categories=["C"]), min_size=1), email=st.emails())
async def test_what_is_kept_is_what_was_given(storage: UserStorage, name: str, email: str):
    """Every text that PostgreSQL and SQLite can be given comes back as it was."""
    user = User(uuid.uuid7(), name, f"{uuid.uuid7()}{email}")
    await storage.create(user)
    assert await storage.get(user.id) == user
