import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from services.user.testing_postgresql import PostgreSQL, Standby, running_postgresql, running_standby
from tests.faults.load import CREATORS, Load, assert_nothing_lost, until_readiness
from tests.faults.proxy import server_behind_proxy
from tests.programs import migrate, running_server

RECOVERED = 10.0
"""Seconds after the promotion within which users are created again, on a busy machine."""

RECOVERED_FROM_SILENCE = 15.0
"""The same where the old server says nothing: calls find out by their deadlines."""

RELOAD = "SELECT pg_reload_conf()"


def hosts(url: str, *others: str) -> str:
    """Return the URL with the hosts of the others behind its own."""
    more = [other.rpartition("@")[2].partition("/")[0] for other in others]
    return url.replace("/users", "".join(f",{host}" for host in more) + "/users")


def port_of(url: str) -> int:
    """Return the port of a URL."""
    port = urlsplit(url).port
    assert port
    return port


async def execute(url: str, *statements: str) -> None:
    """Execute statements, each a transaction by itself, also where nothing may be written."""
    connection = await asyncpg.connect(url, server_settings={"default_transaction_read_only": "off"})
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@asynccontextmanager
async def synchronous_pair() -> AsyncIterator[tuple[PostgreSQL, Standby]]:
    """Run a primary with the tables, and a standby that has each user before anybody hears of it."""
    with running_postgresql() as postgresql, running_standby(postgresql) as standby:
        migrate(postgresql.url)
        await execute(postgresql.url, "ALTER SYSTEM SET synchronous_standby_names = '*'", RELOAD)
        yield postgresql, standby


async def test_standby_takes_over():
    """The primary dies, the standby is promoted, and all acknowledged users are there and come again."""
    async with synchronous_pair() as (postgresql, standby):
        with running_server(hosts(standby.url, postgresql.url)) as server:
            load = Load()
            async with load.running(server.target):
                await load.until_acknowledged(200)
                await asyncio.to_thread(postgresql.kill)
                await load.until_failed(20)
                await asyncio.to_thread(standby.promote)
                began = time.monotonic()
                await load.until_acknowledged(200)
                assert time.monotonic() - began < RECOVERED
            await assert_nothing_lost(load, "PostgreSQL: failover", "postgresql", server.target)


async def test_address_moves_to_the_standby():
    """The same behind one address, whose old server says nothing any more but is not closed either."""
    async with (
        synchronous_pair() as (postgresql, standby),
        server_behind_proxy(postgresql.url) as (server, proxy),
    ):
        load = Load()
        async with load.running(server.target):
            await load.until_acknowledged(200)
            proxy.silence()
            await load.until_failed(CREATORS)
            await asyncio.to_thread(standby.promote)
            proxy.move_to(port_of(standby.url))
            proxy.resume()
            began = time.monotonic()
            await load.until_acknowledged(200)
            assert time.monotonic() - began < RECOVERED_FROM_SILENCE
        await assert_nothing_lost(load, "PostgreSQL: address moved", "postgresql", server.target)


async def test_primary_hangs():
    """It keeps its connections, all of a pool, and answers on none of them any more."""
    async with synchronous_pair() as (postgresql, standby):
        with ExitStack() as hanging, running_server(hosts(postgresql.url, standby.url)) as server:
            load = Load()
            async with load.running(server.target):
                await load.until_acknowledged(200)
                hanging.enter_context(postgresql.paused())
                await load.until_failed(CREATORS)
                await asyncio.to_thread(standby.promote)
                began = time.monotonic()
                await load.until_acknowledged(200)
                assert time.monotonic() - began < RECOVERED_FROM_SILENCE
            await assert_nothing_lost(load, "PostgreSQL: hangs", "postgresql", server.target)


async def test_primary_that_takes_no_writes_any_more(postgresql_url):
    """A primary that becomes read-only makes the service unready, though it keeps its connections."""
    with running_server(postgresql_url) as server:
        load = Load()
        async with load.running(server.target), grpc.aio.insecure_channel(server.target) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await load.until_acknowledged(100)
            await until_readiness(health, HealthCheckResponse.SERVING)
            change = "ALTER SYSTEM SET default_transaction_read_only = on"
            await execute(postgresql_url, change, RELOAD)
            await until_readiness(health, HealthCheckResponse.NOT_SERVING)
            undo = "ALTER SYSTEM RESET default_transaction_read_only"
            await execute(postgresql_url, undo, RELOAD)
            await until_readiness(health, HealthCheckResponse.SERVING)
            await load.until_acknowledged(100)
        await assert_nothing_lost(load, "PostgreSQL: read-only", "postgresql", server.target)
