import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub, add_UserServiceServicer_to_server

from grpc_common import error_details
from grpc_common.testing import serve_on_loopback
from services.user.servicer import UserService
from services.user.storage import open_sqlite


@asynccontextmanager
async def user_service() -> AsyncIterator[UserServiceStub]:
    """Serve an empty user service and yield a stub for it."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_sqlite(Path(folder) / "users.db") as storage,
            serve_on_loopback(UserService(storage), add_UserServiceServicer_to_server) as channel,
        ):
            yield UserServiceStub(channel)


@pytest.fixture
async def stub():
    """Return a stub for an empty user service."""
    async with user_service() as stub:
        yield stub


async def create(stub, name: str = "Ada Lovelace", email: str = "ada@example.com") -> pb.User:
    """Create a user through the service."""
    return await stub.CreateUser(pb.CreateUserRequest(name=name, email=email))


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


@settings(max_examples=25, deadline=None)
@given(
    emails=st.lists(st.integers(0, 30).map("user{}@example.com".format), max_size=30),
    size=st.integers(1, 40),
    late=st.integers(0, 5),
)
async def test_pages_hold_each_user_once(emails, size, late):
    """Whatever was created and however large the pages, each user is listed once, in order.

    Users that are created between two pages come at the end and disturb nothing.
    """
    async with user_service() as stub:
        created = []
        for email in emails:
            if email not in {user.email for user in created}:
                created.append(await create(stub, email=email))
            else:
                assert (await failure(create(stub, email=email)))[0] == grpc.StatusCode.ALREADY_EXISTS
        listed, token = await page(stub, size)
        more_is_there = bool(token)
        for n in range(late):
            user = await create(stub, email=f"late{n}@example.com")
            created += [user] if more_is_there else []
        while token:
            users, token = await page(stub, size, token)
            assert 1 <= len(users) <= size
            listed += users
        assert listed == created


async def test_failing_storage_is_unavailable():
    """When the database can't be read the caller is told to come back, and nothing of why."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "users.db"
        async with (
            open_sqlite(path) as storage,
            serve_on_loopback(UserService(storage), add_UserServiceServicer_to_server) as channel,
        ):
            stub = UserServiceStub(channel)
            user = await create(stub)
            path.write_bytes(b"\xa5" * path.stat().st_size)
            path.with_suffix(".db-wal").write_bytes(b"")
            path.with_suffix(".db-shm").unlink()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetUser(pb.GetUserRequest(id=user.id))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the users can't be read or written now"
