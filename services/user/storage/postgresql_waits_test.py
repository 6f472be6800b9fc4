"""Who makes a migration wait, in words."""

import re

from services.user.config import DatabaseConfig
from services.user.storage.postgresql_waits import connected, holders


async def test_blocked_by_whom_the_role_may_not_see(postgresql_database):
    """Of another role's transaction PostgreSQL shows the name only; the line has no `None` in it."""
    async with connected(postgresql_database) as other, other.transaction():
        await other.execute("DROP ROLE IF EXISTS ada; CREATE ROLE ada LOGIN; SELECT pg_advisory_xact_lock(1)")
        with_all_rights = await holders(other, 1)
        await other.execute("COMMIT; BEGIN; SELECT pg_advisory_xact_lock(1)")
        ada = DatabaseConfig(url=postgresql_database.url.replace("postgres@", "ada@"))
        async with connected(ada) as connection:
            said = await holders(connection, 1)
        pid = other.get_server_pid()
    assert re.fullmatch(rf"pid {pid} \(postgres, [\w -]+, active, for \d+ s\)", with_all_rights)
    assert said == f"pid {pid} (postgres; a member of pg_read_all_stats sees more)"
