import asyncio
from contextlib import AsyncExitStack, ExitStack

import grpc
import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tests.faults.load import NO_HURRY, Load, assert_nothing_lost, users_of
from tests.programs import Server, running_server

REPLICAS = 3
ROUNDS = 50
"""Times that all replicas are called at once: not each time meets the moment that matters."""


@pytest.fixture
def replicas(postgresql_url: str):
    """Run three servers on one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(running_server(postgresql_url)) for _ in range(REPLICAS)]


@pytest.fixture
async def stubs(replicas: list[Server]):
    """Return a stub for each server."""
    async with AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(server.target) for server in replicas]
        yield [UserServiceStub(await stack.enter_async_context(channel)) for channel in channels]


async def test_one_key_at_all_replicas(replicas, stubs):
    """A create that comes to three replicas at the same time, with one key, makes one user."""
    load = Load(NO_HURRY)
    for n in range(ROUNDS):
        created = await asyncio.gather(*(load.create(stub, f"user{n}") for stub in stubs))
        assert created == [True] * REPLICAS
    await assert_nothing_lost(load, "one key at three replicas", "postgresql", replicas[0].target)


async def test_one_email_at_all_replicas(replicas, stubs):
    """Of three creates with one email and no key one succeeds, wherever they come."""
    for n in range(ROUNDS):
        request = pb.CreateUserRequest(name="Ada", email=f"ada{n}@example.com")
        calls = [stub.CreateUser(request, timeout=NO_HURRY) for stub in stubs]
        codes = [await call.code() for call in calls]
        assert codes.count(grpc.StatusCode.OK) == 1
        assert codes.count(grpc.StatusCode.ALREADY_EXISTS) == REPLICAS - 1
    assert len(await users_of(replicas[0].target)) == ROUNDS


async def test_a_replica_is_killed(replicas):
    """The other replicas have what it acknowledged, and finish what it left unanswered."""
    load = Load()
    async with load.running(*(server.target for server in replicas)):
        await load.until_acknowledged(200)
        replicas[0].kill()
        await load.until_acknowledged(200)
    await assert_nothing_lost(load, "one of three replicas killed", "postgresql", replicas[1].target)
