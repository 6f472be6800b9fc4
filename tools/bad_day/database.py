"""PostgreSQL with a synchronous standby behind one address, and PgBouncer before it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import asyncpg

from services.user.testing_pgbouncer import PgBouncer, running_pgbouncer
from services.user.testing_postgresql import PostgreSQL, Standby, running_postgresql, running_standby
from tests.faults.proxy import Proxy
from tests.programs import migrate
from tools.bad_day.disk import SmallDisk, small_disk

_PATIENCE = 60
"""Seconds that a standby may take until it has all that the primary has."""

# A standby looks for its primary every 5 s by default, and until it has found it no commit ends.
_SETTINGS = (
    "ALTER SYSTEM SET wal_retrieve_retry_interval = '500ms'",
    # What fits on a small disk.
    "ALTER SYSTEM SET max_wal_size = '64MB'",
    "ALTER SYSTEM SET min_wal_size = '32MB'",
)
_WAIT_FOR_STANDBY = "ALTER SYSTEM SET synchronous_standby_names = '*'"
_RELOAD = "SELECT pg_reload_conf()"
_IN_SYNC = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"

_TRIES = 4
"""Half seconds for a database to come back by itself."""

_POOLER = {"server_login_retry": 1}
"""By default PgBouncer refuses everybody for 15 s after the database has refused it once."""


@dataclass(frozen=True)
class _Address:
    """What leads to whichever server is the primary."""

    url: str


class Database:
    """What the servers have their users in; what is acknowledged is in two places."""

    def __init__(self, primary: PostgreSQL, standby: Standby, stack: AsyncExitStack) -> None:
        self.url = ""
        """PgBouncer's."""
        self.pooler: PgBouncer
        self.primary: PostgreSQL = primary
        self.standby = standby
        self._address = Proxy(_port(primary.url))
        self._stack = stack
        self._disks: list[SmallDisk] = []
        """The primary's, and the standby's."""

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[Self]:
        """Run all of it, with the service's tables; skip the test if the machine has no PostgreSQL."""
        async with AsyncExitStack() as stack:
            disks = [await _entered(stack, small_disk()) for _ in range(2)]
            primary = await _entered(stack, running_postgresql(disks[0].path))
            await asyncio.to_thread(migrate, primary.url)
            await _execute(primary.url, *_SETTINGS, _RELOAD)
            standby = await _entered(stack, running_standby(primary, disks[1].path))
            database = cls(primary, standby, stack)
            database._disks = disks
            await database._start()
            yield database

    async def _start(self) -> None:
        await self._wait_for_standby()
        listener = await asyncio.start_server(self._address.serve, "127.0.0.1", 0)
        self._stack.callback(self._address.cut)
        self._stack.callback(listener.close)
        own_port = listener.sockets[0].getsockname()[1]
        address = _Address(self.primary.url.replace(f":{_port(self.primary.url)}/", f":{own_port}/"))
        self.pooler = await _entered(self._stack, running_pgbouncer(address, **_POOLER))
        self.url = self.pooler.url

    async def restart(self, how: str) -> None:
        """Restart the primary in order ("fast"), or "kill" and start it; it needs its standby again."""
        if how == "kill":
            await asyncio.to_thread(self.primary.kill)
            await asyncio.to_thread(self.primary.start)
        else:
            await asyncio.to_thread(self.primary.restart)
        await self._in_sync()

    async def fail_over(self) -> None:
        """Kill the primary, promote the standby, move the address to it, and give it a standby of its own."""
        await self._in_sync()
        await asyncio.to_thread(self.primary.kill)
        self._address.cut()
        await asyncio.to_thread(self.standby.promote)
        self.primary = self.standby
        self._address.move_to(_port(self.primary.url))
        self._disks = [self._disks[1], await _entered(self._stack, small_disk())]
        self.standby = await _entered(self._stack, running_standby(self.primary, self._disks[1].path))
        await self._wait_for_standby()

    @asynccontextmanager
    async def full_disk(self) -> AsyncIterator[None]:
        """Leave the primary no byte to write for the block; start it again if that has ended it."""
        self._disks[0].fill()
        try:
            yield
        finally:
            self._disks[0].free()
            await self._revive()
            await self._in_sync()

    async def _revive(self) -> None:
        """Start the primary, unless it has survived or starts by itself."""
        for _ in range(_TRIES):
            try:
                await _execute(self.primary.url, "SELECT 1")
            except OSError, asyncpg.PostgresError:
                await asyncio.sleep(0.5)
            else:
                return
        await asyncio.to_thread(self.primary.start)

    async def _wait_for_standby(self) -> None:
        """Have nothing acknowledged from now on that the standby does not have."""
        await _execute(self.primary.url, _WAIT_FOR_STANDBY, _RELOAD)
        await self._in_sync()

    async def _in_sync(self) -> None:
        """Wait until the standby has all; a controller promotes no other."""
        start = time.monotonic()
        while not await _value(self.primary.url, _IN_SYNC):
            if time.monotonic() - start > _PATIENCE:
                raise TimeoutError(f"the standby does not follow the primary within {_PATIENCE} s")
            await asyncio.sleep(0.1)


async def _entered[T](stack: AsyncExitStack, context: AbstractContextManager[T]) -> T:
    """Enter what starts a program, in a thread, since that waits; who cancels it waits for it too.

    Else the stack would have ended all that it knows, and the thread would start one thing more.
    """
    entering = asyncio.create_task(asyncio.to_thread(stack.enter_context, context))
    try:
        return await asyncio.shield(entering)
    finally:
        await asyncio.wait([entering])


async def _execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def _value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port
