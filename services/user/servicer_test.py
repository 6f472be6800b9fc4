import asyncio
import uuid
from pathlib import Path

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub, add_UserServiceServicer_to_server

from grpc_common import error_details
from grpc_common.testing import serve_on_loopback
from services.user.config import DatabaseConfig
from services.user.paging import token_after
from services.user.servicer import ERRORS, UserService
from services.user.storage import migrate_storage, open_storage


@pytest.fixture
async def stub(storage):
    """Return a stub for an empty user service."""
    async with serve_on_loopback(
        UserService(storage), add_UserServiceServicer_to_server, errors=ERRORS
    ) as channel:
        yield UserServiceStub(channel)


async def create(
    stub, name: str = "Ada Lovelace", email: str = "ada@example.com", keys: tuple[str, ...] = ()
) -> pb.User:
    """Create a user through the service."""
    metadata = [("idempotency-key", key) for key in keys]
    return await stub.CreateUser(pb.CreateUserRequest(name=name, email=email), metadata=metadata)


async def page(stub, size: int, token: str = "") -> tuple[list[pb.User], str]:
    """Return a page's users and the token of the next."""
    call = stub.ListUsers(pb.ListUsersRequest(page_size=size, page_token=token))
    users = [user async for user in call]
    return users, dict(await call.trailing_metadata()).get("next-page-token", "")


async def failure(call) -> tuple[grpc.StatusCode, list]:
    """Return the code and details with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return caught.value.code(), error_details(caught.value)


async def test_created_user_can_be_got(stub):
    """GetUser returns what CreateUser returned."""
    user = await create(stub)
    assert (user.name, user.email) == ("Ada Lovelace", "ada@example.com")
    assert await stub.GetUser(pb.GetUserRequest(id=user.id)) == user
    assert await stub.GetUser(pb.GetUserRequest(id=user.id.upper())) == user


async def test_unknown_id(stub):
    """NOT_FOUND says which user is missing."""
    user_id = "019b2f60-7c00-7000-8000-000000000000"
    code, (resource,) = await failure(stub.GetUser(pb.GetUserRequest(id=user_id)))
    assert code == grpc.StatusCode.NOT_FOUND
    assert (resource.resource_type, resource.resource_name) == ("user.User", user_id)


@pytest.mark.parametrize(
    "user_id", ["", "7", "{019b2f60-7c00-7000-8000-000000000000}", "0" * 32, "x" * 10_000, "\x00"]
)
async def test_id_that_is_no_uuid(stub, user_id):
    """INVALID_ARGUMENT names the field id."""
    code, (bad_request,) = await failure(stub.GetUser(pb.GetUserRequest(id=user_id)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in bad_request.field_violations] == ["id"]


@pytest.mark.parametrize(
    ("name", "email", "fields"),
    [
        ("", "ada@example.com", ["name"]),
        ("x" * 10_000, "ada@example.com", ["name"]),
        ("Ada\nLovelace", "ada@example.com", ["name"]),
        ("Ada", "example.com", ["email"]),
        ("Ada", "a\x07da@example.com", ["email"]),
        ("", "", ["name", "email"]),
    ],
)
async def test_invalid_user_is_refused(stub, name, email, fields):
    """INVALID_ARGUMENT names each field that is wrong, and nothing is created."""
    code, (bad_request,) = await failure(create(stub, name, email))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in bad_request.field_violations] == fields
    assert await page(stub, 1) == ([], "")


async def test_email_of_another_user(stub):
    """ALREADY_EXISTS names the email, however it is spelled."""
    await create(stub)
    code, (resource,) = await failure(create(stub, "Somebody", "ADA@EXAMPLE.COM"))
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert resource.resource_name == "ADA@example.com"


@pytest.mark.parametrize(
    ("request_", "field"),
    [(pb.ListUsersRequest(page_size=-1), "page_size"), (pb.ListUsersRequest(page_token="x"), "page_token")],
)
async def test_bad_page(stub, request_, field):
    """INVALID_ARGUMENT names the field that is wrong."""
    code, (bad_request,) = await failure(stub.ListUsers(request_))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in bad_request.field_violations] == [field]


async def test_default_page_has_50_users(stub):
    """Without a size a page has the documented number of users, and a token for the rest."""
    for n in range(51):
        await create(stub, email=f"user{n}@example.com")
    users, token = await page(stub, 0)
    assert len(users) == 50
    assert token
    assert len((await page(stub, 0, token))[0]) == 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(st.integers(0, 30), max_size=30),
    size=st.integers(1, 40),
    late=st.integers(0, 5),
)
async def test_pages_hold_each_user_once(stub, numbers, size, late):
    """Whatever was created and however large the pages, each user is listed once, in order.

    Users that are created between two pages come at the end and disturb nothing.
    """
    # The users of earlier examples are still there, before this id.
    domain = f"{uuid.uuid4()}.example.com"
    start = token_after(uuid.uuid7())
    created = []
    for position, number in enumerate(numbers):
        email = f"user{number}@{domain}"
        if number in numbers[:position]:
            assert (await failure(create(stub, email=email)))[0] == grpc.StatusCode.ALREADY_EXISTS
        else:
            created.append(await create(stub, email=email))
    listed, token = await page(stub, size, start)
    more_is_there = bool(token)
    for n in range(late):
        user = await create(stub, email=f"late{n}@{domain}")
        created += [user] if more_is_there else []
    while token:
        users, token = await page(stub, size, token)
        assert 1 <= len(users) <= size
        listed += users
    assert listed == created


async def test_repeated_create_with_a_key(stub):
    """The same key with the same request returns the same user, and there is one."""
    users = [await create(stub, keys=("7d1f",)) for _ in range(3)]
    assert users == users[:1] * 3
    assert await page(stub, 10) == (users[:1], "")


async def test_concurrent_creates_with_a_key(stub):
    """Calls with one key that come at once all return the one user."""
    users = await asyncio.gather(*[create(stub, keys=("7d1f",)) for _ in range(20)])
    assert users == users[:1] * 20


async def test_key_with_another_request(stub):
    """INVALID_ARGUMENT names the metadata, and the text has nothing of the first request."""
    await create(stub, keys=("7d1f",))
    code, (bad_request,) = await failure(create(stub, "Eve", "eve@example.com", keys=("7d1f",)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = bad_request.field_violations
    assert (violation.field, violation.description) == (
        "idempotency-key",
        "was given with another request before",
    )


@pytest.mark.parametrize("key", ["7", "x" * 128, "!~ x"])
async def test_longest_and_oddest_keys(stub, key):
    """1 to 128 printable ASCII characters are a key."""
    assert await create(stub, keys=(key,)) == await create(stub, keys=(key,))


@pytest.mark.parametrize("keys", [("",), ("x" * 129,), ("one", "two"), ("one", "one")])
async def test_malformed_key(stub, keys):
    """INVALID_ARGUMENT names the metadata, and nothing is created."""
    code, (bad_request,) = await failure(create(stub, keys=keys))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in bad_request.field_violations] == ["idempotency-key"]
    assert await page(stub, 1) == ([], "")


async def test_create_without_a_key_is_not_repeated(stub):
    """Without a key the same request is another create."""
    await create(stub)
    assert (await failure(create(stub)))[0] == grpc.StatusCode.ALREADY_EXISTS


async def test_stream_that_is_not_read_holds_nothing(stub, storage):
    """While a reader is slow others list and create, as many as there are connections and more."""
    users = [await create(stub, "字" * 200, f"user{n}@example.com") for n in range(300)]
    streams = [stub.ListUsers(pb.ListUsersRequest(page_size=300)) for _ in range(20)]
    first = [await stream.read() for stream in streams]
    assert first == users[:1] * 20
    await create(stub, email="late@example.com")
    await storage.ping()
    streams[0].cancel()
    for stream in streams[1:]:
        assert [await stream.read() for _ in users[1:]] == users[1:]


async def test_failing_storage_is_unavailable(tmp_path):
    """When the database can't be read the caller is told to come back, and nothing of why."""
    path = tmp_path / "users.db"
    async with (
        open_storage(DatabaseConfig(url=f"sqlite:///{path}")) as storage,
        serve_on_loopback(UserService(storage), add_UserServiceServicer_to_server, errors=ERRORS) as channel,
    ):
        stub = UserServiceStub(channel)
        user = await create(stub)
        break_file(path)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetUser(pb.GetUserRequest(id=user.id))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the users can't be read or written now"


def break_file(path: Path) -> None:
    """Make nonsense of a SQLite file that is in use."""
    path.write_bytes(b"\xa5" * path.stat().st_size)
    path.with_suffix(".db-wal").write_bytes(b"")
    path.with_suffix(".db-shm").unlink()


async def test_deadline_while_the_database_waits(postgresql_database, postgresql):
    """A call that waits for the database ends at its deadline, its statement too, and the next ones work."""
    await migrate_storage(postgresql_database)
    locking = await asyncpg.connect(postgresql.url)
    async with (
        open_storage(postgresql_database) as storage,
        serve_on_loopback(UserService(storage), add_UserServiceServicer_to_server, errors=ERRORS) as channel,
    ):
        stub = UserServiceStub(channel)
        async with locking.transaction():
            await locking.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            for _ in range(postgresql_database.pool_size + 1):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.CreateUser(
                        pb.CreateUserRequest(name="Ada", email="ada@example.com"), timeout=0.2
                    )
                assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            # Cancelled there too. Were the lock given up before, the last statement might still be done.
            async with asyncio.timeout(10):
                while await locking.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.02)
        await locking.close()
        await create(stub)
