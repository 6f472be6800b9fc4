import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

import grpc_common
from grpc_common.testing import configure
from services.user.storage import StorageError, migrate_storage, open_storage

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

SHORT = 0.2
"""Seconds: the storage's own limits, which a slow database exceeds."""


@asynccontextmanager
async def readiness(storage, **timing):
    """Serve with the database as its dependency, asked all the time; yield a watch of readiness."""
    server = grpc_common.Server(configure())
    server.depend_on("database", storage.ping, interval=0.05, timeout=0.1, **timing)
    async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="readiness"), timeout=60
        )


async def until(watch, wanted: int) -> None:
    """Wait until the watch tells a status. On a busy machine the database answers late, and it tells more."""
    while (await watch.read()).status != wanted:
        pass


async def until_works(storage) -> None:
    """Read until that is done within SHORT, which a busy machine exceeds at times."""
    async with asyncio.timeout(30):
        while True:
            with suppress(StorageError):
                return await storage.page(None, 1)


async def test_slow_database_leaves_a_replica_ready(postgresql, postgresql_database):
    """While it exceeds every limit of the storage calls fail, and no replica leaves for it."""
    await migrate_storage(postgresql_database)
    limits = {"connect_timeout": SHORT, "statement_timeout": SHORT}
    async with open_storage(postgresql_database.model_copy(update=limits)) as storage:
        await until_works(storage)
        async with readiness(storage) as watch:
            await until(watch, SERVING)
            with capture_logs() as logs:
                with postgresql.paused():
                    await asyncio.sleep(12 * SHORT)  # for more failures in a row than make it down
                await until_works(storage)
    assert "readiness" not in [line["event"] for line in logs]
    assert "dependency has not answered" in [line["event"] for line in logs]


async def test_database_that_does_not_answer_any_more(postgresql, postgresql_database):
    """Without any answer for long it is down, and up with the first answer."""
    await migrate_storage(postgresql_database)
    async with open_storage(postgresql_database) as storage, readiness(storage, patience=0.5) as watch:
        await until(watch, SERVING)
        with postgresql.paused():
            await until(watch, NOT_SERVING)
        await until(watch, SERVING)


async def test_start_while_the_database_does_not_answer(postgresql, postgresql_database):
    """A replica that finds a silent database starts, and is ready once there is an answer."""
    await migrate_storage(postgresql_database)
    config = postgresql_database.model_copy(update={"connect_timeout": SHORT})
    async with AsyncExitStack() as stack:
        with postgresql.paused():
            storage = await stack.enter_async_context(open_storage(config))
            watch = await stack.enter_async_context(readiness(storage))
            await until(watch, NOT_SERVING)
        await until(watch, SERVING)


async def test_start_while_the_schema_is_locked(postgresql_database):
    """So does one whose questions wait behind a lock."""
    await migrate_storage(postgresql_database)
    config = postgresql_database.model_copy(update={"connect_timeout": SHORT})
    locking = await asyncpg.connect(config.url)
    async with AsyncExitStack() as stack:
        async with locking.transaction():
            await locking.execute("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
            storage = await stack.enter_async_context(open_storage(config))
            watch = await stack.enter_async_context(readiness(storage))
            await until(watch, NOT_SERVING)
        await until(watch, SERVING)
    await locking.close()


async def test_database_that_is_down(postgresql, postgresql_database):
    """It refuses, which is an answer: not ready at once, and ready again when it is there."""
    await migrate_storage(postgresql_database)
    async with open_storage(postgresql_database) as storage, readiness(storage) as watch:
        await until(watch, SERVING)
        with postgresql.stopped():
            await until(watch, NOT_SERVING)
        await until(watch, SERVING)
