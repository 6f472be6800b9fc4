"""Calls that outlast a restart of PostgreSQL.

A planned restart, or a failover, takes a second or two. What it meets is done again once the database
answers, so that no caller hears of it. A database that is away for longer is down: calls fail at once until
it is back.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg

from services.user.storage.postgresql_connection import FAILURES

_GONE = (
    ConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.CrashShutdownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that ends between two steps of a statement
)
"""What a server that ends, or begins, has its clients see. A call to one that hangs has waited already."""

_PAUSE = 0.1
"""Seconds between two looks whether it is back."""


class Restarts:
    """Has operations wait while the database restarts, and does them again.

    Args:
        ask: raises one of FAILURES while the database can't be used.
        patience: seconds that a restart may take.

    """

    def __init__(self, ask: Callable[[], Awaitable[None]], patience: float) -> None:
        self._ask = ask
        self._patience = patience
        self._is_up = False
        self._waiting: asyncio.Task[bool] | None = None

    async def ask(self) -> None:
        """Do nothing if the database can be used; then what meets a restart waits, the first call too.

        Raises:
            FAILURES: it can't be used.

        """
        await self._ask()
        self._is_up = True

    async def outlast[Result](self, operation: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `operation` does, which may be done twice: a first time whose answer was lost.

        Raises:
            FAILURES: the database is down, or refuses.

        """
        clock = asyncio.get_running_loop()
        end: float | None = None
        while True:
            try:
                result = await operation()
            except _GONE:
                end = end or clock.time() + self._patience
                if not self._is_up or not await self._is_back() or clock.time() > end:
                    raise
            else:
                self._is_up = True
                return result

    async def _is_back(self) -> bool:
        """Wait with all others until the database answers, or has been away for too long."""
        if self._waiting is None or self._waiting.done():
            self._waiting = asyncio.create_task(self._wait())
        return await asyncio.shield(self._waiting)

    async def _wait(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while True:
                    await asyncio.sleep(_PAUSE)
                    with suppress(*FAILURES):
                        await self.ask()
                        return True
        self._is_up = False
        return False

    def close(self) -> None:
        """Wait no more."""
        if self._waiting:
            self._waiting.cancel()
