import asyncio

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests.faults.load import CREATORS, RECOVERY, Load
from tests.faults.proxy import server_behind_proxy

SLOW = 1.5
"""Seconds that all takes in each direction: longer than a probe had before."""

WATCHED = 25.0
"""Seconds in which a server that takes slow for down would have said so."""


async def test_slow_database_is_not_down(postgresql_url: str):
    """While answers take seconds and calls have all connections, the server stays ready: none is better."""
    async with server_behind_proxy(postgresql_url) as (server, proxy):
        connection = await asyncpg.connect(postgresql_url)
        load = Load()
        async with load.running(server.target), grpc.aio.insecure_channel(server.target) as channel:
            await load.until_acknowledged(CREATORS)
            watch = health_pb2_grpc.HealthStub(channel).Watch(HealthCheckRequest(service="readiness"))
            async with asyncio.timeout(RECOVERY):  # a busy database's first answer may be late
                while (await watch.read()).status != HealthCheckResponse.SERVING:
                    pass
            proxy.delay = SLOW
            async with connection.transaction():
                await connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(WATCHED):
                        await watch.read()
            assert load.codes.total()
            proxy.delay = 0.0
        await connection.close()
