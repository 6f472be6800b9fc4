"""Whether a PostgreSQL database can be used, for readiness."""

import asyncio
from typing import Self

import asyncpg

from services.user.storage.postgresql_connection import Connection, Connector
from services.user.storage.postgresql_schema import check_schema


class Probe:
    """Asks over a connection of its own whether the database can be used.

    So a pool whose connections are all busy, which other replicas' may be too, makes no replica unready.

    Args:
        connector: opens the connection.
        pool: the connections of calls. They are replaced if the database is not of the kind any more that is
            wanted, as one that takes writes, or has closed the probe's: another host may be it now.
        name: names the database in errors.

    """

    def __init__(self, connector: Connector, pool: asyncpg.Pool, name: str) -> None:
        self._connector = connector
        self._pool = pool
        self._name = name
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._close()

    async def ask(self) -> None:
        """Do nothing if the database has this program's schema, and takes writes if that is wanted.

        Raises:
            SchemaError: it has another schema.
            FAILURES: it can't be used.

        """
        async with self._turn:
            if self._connection and self._connection.is_closed():
                # While it was idle, for which the database or a pooler may have a limit. Or it is gone:
                # then a new connection fails, or leads to another host.
                await self.replace_connections()
            connection = self._connection = self._connection or await self._connector.connect()
            try:
                await self._ask(connection)
            except BaseException as error:
                is_lost = connection.is_closed() or isinstance(error, asyncpg.TargetServerAttributeNotMatched)
                self._close()  # a question that was given up may be under way on it
                if is_lost:
                    await self.replace_connections()
                raise

    async def _ask(self, connection: Connection) -> None:
        async with connection.statements():
            await check_schema(connection, self._name)
            await self._connector.check(connection)

    async def replace_connections(self) -> None:
        """Have each connection replaced before it is used again."""
        self._close()
        await self._pool.expire_connections()

    def _close(self) -> None:
        if self._connection:
            self._connection.terminate()
            self._connection = None
