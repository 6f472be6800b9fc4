import asyncio
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from services.user.testing_postgresql import PostgreSQL
from tests.faults.load import CREATORS, Load, assert_nothing_lost, until_readiness
from tests.programs import running_server

DOWN = 10.0
"""Seconds that PostgreSQL is stopped for."""


@pytest.mark.parametrize("mode", ["restart", "kill"])
async def test_postgresql_restarts(postgresql: PostgreSQL, postgresql_url: str, mode: str):
    """Restarted in order or killed, PostgreSQL has every acknowledged user, and the service goes on."""

    def end_and_start() -> None:
        if mode == "restart":
            postgresql.restart()
        else:
            postgresql.kill()
            postgresql.start()

    with running_server(postgresql_url) as server:
        load = Load()
        async with load.running(server.target):
            for _ in range(3):
                await load.until_acknowledged(200)
                await asyncio.to_thread(end_and_start)
            await load.until_acknowledged(200)
        await assert_nothing_lost(load, f"PostgreSQL: {mode}", "postgresql", server.target)


async def test_postgresql_is_down_for_a_while(postgresql: PostgreSQL, postgresql_url: str):
    """Each call ends in time while PostgreSQL is down; health says so, and all goes on by itself."""
    with running_server(postgresql_url) as server:
        load = Load()
        async with load.running(server.target), grpc.aio.insecure_channel(server.target) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await load.until_acknowledged(200)
            await until_readiness(health, HealthCheckResponse.SERVING)
            began = time.monotonic()
            await asyncio.to_thread(postgresql.stop)
            await until_readiness(health, HealthCheckResponse.NOT_SERVING)
            request = health_pb2.HealthCheckRequest(service="liveness")
            assert (await health.Check(request)).status == HealthCheckResponse.SERVING
            await asyncio.sleep(DOWN - (time.monotonic() - began))
            await asyncio.to_thread(postgresql.start)
            await load.until_acknowledged(200)
            await until_readiness(health, HealthCheckResponse.SERVING)
        await assert_nothing_lost(load, f"PostgreSQL: down {DOWN:g} s", "postgresql", server.target)


async def test_server_starts_before_postgresql(postgresql: PostgreSQL, postgresql_url: str):
    """A server that finds no database at its start lives, is not ready, and serves once there is one."""
    await asyncio.to_thread(postgresql.stop)
    with running_server(postgresql_url) as server:
        load = Load()
        async with load.running(server.target), grpc.aio.insecure_channel(server.target) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await load.until_failed(CREATORS)
            await until_readiness(health, HealthCheckResponse.NOT_SERVING)
            await asyncio.to_thread(postgresql.start)
            await load.until_acknowledged(200)
            await until_readiness(health, HealthCheckResponse.SERVING)
        await assert_nothing_lost(load, "PostgreSQL: started late", "postgresql", server.target)
