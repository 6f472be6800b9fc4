import asyncio
from contextlib import asynccontextmanager

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from services.user.testing_pgbouncer import running_pgbouncer
from tests.faults.load import CREATORS, NO_HURRY, Load, assert_nothing_lost, until_readiness
from tests.programs import running_server

pytestmark = pytest.mark.usefixtures("postgresql_url")

SETTINGS = {
    "as Debian has it": {},
    "without prepared statements, for few": {"max_prepared_statements": 0, "default_pool_size": 2},
    "session pooling": {"pool_mode": "session"},
}


@asynccontextmanager
async def health_of(server):
    """Yield a stub of the server's health."""
    async with grpc.aio.insecure_channel(server.target) as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("settings", SETTINGS)
async def test_service_behind_a_pooler(postgresql, settings):
    """Behind PgBouncer, without a word about it in the configuration, no call fails and health is SERVING."""
    with running_pgbouncer(postgresql, **SETTINGS[settings]) as pooler, running_server(pooler.url) as server:
        load = Load(NO_HURRY)
        async with load.running(server.target), health_of(server) as health:
            await until_readiness(health, HealthCheckResponse.SERVING)
            await load.until_acknowledged(400)
        assert not load.codes
        await assert_nothing_lost(load, f"PgBouncer: {settings}", "postgresql", server.target)


async def test_pooler_restarts(postgresql):
    """While the pooler is away calls fail in time and health says so; then all goes on by itself."""
    with running_pgbouncer(postgresql) as pooler, running_server(pooler.url) as server:
        load = Load()
        async with load.running(server.target), health_of(server) as health:
            await load.until_acknowledged(100)
            await asyncio.to_thread(pooler.stop)
            await until_readiness(health, HealthCheckResponse.NOT_SERVING)
            await asyncio.to_thread(pooler.start)
            await load.until_acknowledged(100)
            await until_readiness(health, HealthCheckResponse.SERVING)
        await assert_nothing_lost(load, "PgBouncer: restarted", "postgresql", server.target)


async def test_calls_that_are_given_up_poison_no_shared_session(postgresql):
    """Calls that end in the middle of their statement leave the sessions to others as they were."""
    few = {"max_prepared_statements": 0, "default_pool_size": 2}
    with running_pgbouncer(postgresql, **few) as pooler, running_server(pooler.url) as server:
        load = Load(NO_HURRY)
        async with load.running(server.target), grpc.aio.insecure_channel(server.target) as channel:
            await load.until_acknowledged(50)
            stub = UserServiceStub(channel)
            for n in range(200):
                call = stub.CreateUser(pb.CreateUserRequest(name="Given Up", email=f"up{n}@example.org"))
                await asyncio.sleep(n % 10 / 2000)
                call.cancel()
            await load.until_acknowledged(100)
        assert not load.codes


async def test_pooler_gives_others_what_the_service_leaves(postgresql):
    """A session that the service had has neither settings nor statements of it for the next client."""
    one = {"max_prepared_statements": 0, "default_pool_size": 1}
    with running_pgbouncer(postgresql, **one) as pooler, running_server(pooler.url) as server:
        load = Load()
        async with load.running(server.target):
            await load.until_acknowledged(50)
        other = await asyncpg.connect(pooler.url, statement_cache_size=0)
        async with other.transaction():
            assert await other.fetchval("SHOW statement_timeout") == "0"
            assert await other.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
            assert await other.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        await other.close()


async def test_pooler_without_the_database_is_not_ready(postgresql):
    """A pooler that has no way to the database, or no room, makes the service unready, with its own words."""
    with running_pgbouncer(postgresql, max_client_conn=1) as pooler:
        taken = await asyncpg.connect(pooler.admin_url, statement_cache_size=0)
        with running_server(pooler.url) as server:
            load = Load()
            async with load.running(server.target), health_of(server) as health:
                await load.until_failed(CREATORS)
                await until_readiness(health, HealthCheckResponse.NOT_SERVING)
                await asyncio.to_thread(server.wait_for_line, "no more connections allowed")
        await taken.close()
