import pytest

from tests.faults.load import CREATORS, Load, assert_nothing_lost
from tests.programs import running_server


@pytest.mark.parametrize("kill_after", [1, 200])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_acknowledged_users_survive_kill_9(request, database: str, kill_after: int):
    """Killed in the midst of writes, again and again, the server has every acknowledged user once."""
    url = request.getfixturevalue(f"{database}_url")
    load = Load()
    for _ in range(3):
        with running_server(url) as server:
            async with load.running(server.target):
                await load.until_acknowledged(kill_after)
                server.kill()
                await load.until_failed(CREATORS)
    with running_server(url) as server:
        await assert_nothing_lost(load, "service killed", database, server.target)
