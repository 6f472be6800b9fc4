"""The PgBouncer of other tests is what they take it for."""

import asyncpg
import pytest

from services.user.testing_pgbouncer import running_pgbouncer


async def test_each_transaction_may_have_another_connection(postgresql):
    """A connection to the database is whose transaction runs: two clients take turns on one."""
    with running_pgbouncer(postgresql, default_pool_size=1) as bouncer:
        clients = [await asyncpg.connect(bouncer.url, statement_cache_size=0) for _ in range(2)]
        pids = {await client.fetchval("SELECT pg_backend_pid()") for client in clients}
        assert len(pids) == 1
        for client in clients:
            await client.close()


async def test_a_startup_parameter_is_refused(postgresql):
    """As with PgBouncer's defaults in production, only what it tracks may be asked for at the start."""
    refused = pytest.raises(asyncpg.ProtocolViolationError, match="unsupported startup parameter")
    with running_pgbouncer(postgresql) as bouncer, refused:
        await asyncpg.connect(bouncer.url, server_settings={"statement_timeout": "1000"})
