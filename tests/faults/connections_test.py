import asyncio
import uuid

import asyncpg
import grpc
import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tests.faults.load import CREATORS, RECOVERY, Load, assert_nothing_lost
from tests.faults.proxy import ANSWER, STATEMENT, server_behind_proxy
from tests.programs import running_server

CUT_EVERY = 0.1
"""Seconds: often enough to meet statements in every state."""


async def test_connections_cut_at_any_time(postgresql_url: str):
    """Whatever the service was doing when its connections were reset, it connects again."""
    async with server_behind_proxy(postgresql_url) as (server, proxy):
        load = Load()
        async with load.running(server.target):
            for _ in range(20):
                await load.until_acknowledged(CREATORS)
                await asyncio.sleep(CUT_EVERY)
                proxy.cut()
            await load.until_acknowledged(100)
        await assert_nothing_lost(load, "connections cut", "postgresql", server.target)


@pytest.mark.parametrize("cut_at", [STATEMENT, ANSWER], ids=["statement", "answer"])
async def test_connections_cut_inside_a_transaction(postgresql_url: str, cut_at: bytes):
    """A create that was cut off, sent again with its key, returns the one user, made then or now."""
    patience = {"DATABASE_CONNECT_TIMEOUT": "300ms"}
    async with server_behind_proxy(postgresql_url, **patience) as (server, proxy):
        load = Load()
        async with load.running(server.target):
            # More than once: of the first calls some only read, and the next ones fail before a statement.
            for _ in range(10):
                await load.until_acknowledged(20)
                proxy.cut_at = cut_at
                await load.until_failed(2 * CREATORS)
                proxy.cut_at = None
            await load.until_acknowledged(20)
        fault = "cut before the answer" if cut_at == ANSWER else "cut before the statement"
        kept = await assert_nothing_lost(load, fault, "postgresql", server.target)
        assert bool(kept) == (cut_at == ANSWER)


async def test_network_that_says_nothing(postgresql_url: str):
    """When packets vanish, calls end at their deadline, and connections of that time do no harm later."""
    async with server_behind_proxy(postgresql_url) as (server, proxy):
        load = Load()
        async with load.running(server.target):
            await load.until_acknowledged(50)
            proxy.silence()
            await load.until_failed(3 * CREATORS)
            proxy.resume()
            await load.until_acknowledged(100)
        await assert_nothing_lost(load, "network silent", "postgresql", server.target)


async def test_pool_exhausted(postgresql_url: str):
    """While a lock holds every connection of the pool calls end in time, and it is whole afterwards."""
    with running_server(postgresql_url, DATABASE_POOL_SIZE="2") as server:
        load = Load()
        connection = await asyncpg.connect(postgresql_url)
        async with load.running(server.target):
            await load.until_acknowledged(50)
            async with connection.transaction():
                await connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
                await load.until_failed(3 * CREATORS)
            await load.until_acknowledged(100)
        await connection.close()
        await assert_nothing_lost(load, "pool exhausted", "postgresql", server.target)


async def test_deadlines_shorter_than_connecting(postgresql_url: str):
    """Callers who wait for less time than a new connection takes are served once one was made."""
    async with (
        server_behind_proxy(postgresql_url) as (server, proxy),
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        stub = UserServiceStub(channel)
        proxy.delay = 0.02
        proxy.cut()
        codes = []
        async with asyncio.timeout(RECOVERY):
            while grpc.StatusCode.NOT_FOUND not in codes:
                call = stub.GetUser(pb.GetUserRequest(id=str(uuid.uuid7())), timeout=0.15)
                codes.append(await call.code())
        assert grpc.StatusCode.DEADLINE_EXCEEDED in codes
