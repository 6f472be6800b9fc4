import asyncio
import itertools
from pathlib import Path

import grpc
import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tests.programs import Server, running_server

WRITERS = 8
"""Concurrent creators, so that the kill meets writes in every state."""


async def create_until_killed(server: Server, emails, kill_after: int) -> list[pb.User]:
    """Create users, kill -9 the server in the midst, and return those that it acknowledged."""
    acknowledged: list[pb.User] = []

    async def create(stub) -> None:
        while True:
            request = pb.CreateUserRequest(name="Ada", email=next(emails))
            acknowledged.append(await stub.CreateUser(request))
            if len(acknowledged) == kill_after:
                server.kill()

    async with grpc.aio.insecure_channel(server.target) as channel:
        stub = UserServiceStub(channel)
        results = await asyncio.gather(*(create(stub) for _ in range(WRITERS)), return_exceptions=True)
    assert {error.code() for error in results} == {grpc.StatusCode.UNAVAILABLE}
    return acknowledged


async def all_users(server: Server) -> list[pb.User]:
    """List every user, page by page."""
    users, token = [], ""
    async with grpc.aio.insecure_channel(server.target) as channel:
        while True:
            call = UserServiceStub(channel).ListUsers(pb.ListUsersRequest(page_size=7, page_token=token))
            users += [user async for user in call]
            token = dict(await call.trailing_metadata()).get("next-page-token")
            if not token:
                return users


@pytest.mark.parametrize("kill_after", [1, 50, 200])
async def test_acknowledged_users_survive_kill_9(tmp_path: Path, kill_after: int):
    """Killed in the midst of writes, again and again, the server has every acknowledged user once."""
    database = tmp_path / "users.db"
    emails = (f"user{n}@example.com" for n in itertools.count())
    acknowledged: list[pb.User] = []
    for _ in range(3):
        with running_server(database) as server:
            acknowledged += await create_until_killed(server, emails, kill_after)
    with running_server(database) as server:
        found = await all_users(server)
    assert len(acknowledged) >= 3 * kill_after
    ids = [user.id for user in found]
    assert ids == sorted(set(ids))
    kept = {user.id: user for user in found}
    assert [user for user in acknowledged if kept.get(user.id) != user] == []
    assert len(found) <= len(acknowledged) + 3 * WRITERS
