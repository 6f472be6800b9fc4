"""Connections whose making outlives the call that asked for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.user.storage.postgresql_connection import Connection, Connector


class Connecting:
    """What a pool makes its connections with.

    A call whose deadline is shorter than connecting takes would fail, and so would the next one, for ever:
    what it began is finished, and is the next one's.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._begun: list[asyncio.Task[Connection]] = []

    async def connect(self, *_dsn: Any, **_settings: Any) -> Connection:
        """Return a connection as Connector.connect does; the arguments are those that asyncpg's pool has."""
        connecting = self._next()
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            self._begun.append(connecting)
            connecting.add_done_callback(self._forget_failed)
            raise

    def _next(self) -> asyncio.Task[Connection]:
        while self._begun:
            begun = self._begun.pop()
            if not begun.done() or not begun.result().is_closed():
                return begun
        return asyncio.create_task(self._connector.connect())

    def _forget_failed(self, connecting: asyncio.Task[Connection]) -> None:
        if (connecting.cancelled() or connecting.exception()) and connecting in self._begun:
            self._begun.remove(connecting)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """End what nobody has taken when the block ends."""
        try:
            yield
        finally:
            for connecting in self._begun:
                connecting.cancel()
            for outcome in await asyncio.gather(*self._begun, return_exceptions=True):
                if isinstance(outcome, Connection):
                    outcome.terminate()
