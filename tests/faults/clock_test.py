import time

import pytest
from user.user_service_pb2_grpc import UserServiceStub, add_UserServiceServicer_to_server

from grpc_common import load as load_config
from grpc_common.testing import serve_on_loopback
from services.user.config import UserServiceConfig
from services.user.servicer import ERRORS, UserService
from services.user.storage import open_storage
from tests.faults.load import NO_HURRY, Load, assert_nothing_lost
from tests.programs import running_server

HOUR = 3600 * 10**9
"""In nanoseconds."""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_clock_set_back(request, monkeypatch, database: str):
    """Ids grow whatever the clock does to a server; another one, whose clock is late, overwrites nothing."""
    url = request.getfixturevalue(f"{database}_url")
    config = load_config(UserServiceConfig, environ={"DATABASE_URL": url})
    true_time = time.time_ns
    load = Load(NO_HURRY)
    async with open_storage(config.database) as storage:
        service = UserService(storage)
        async with serve_on_loopback(service, add_UserServiceServicer_to_server, errors=ERRORS) as channel:
            # The clock that ids take, in this process: an hour early, then right, then an hour late.
            for shift in (HOUR, 0, -HOUR, HOUR):
                monkeypatch.setattr(time, "time_ns", lambda shift=shift: true_time() + shift)
                for n in range(100):
                    await load.create(UserServiceStub(channel), f"early{shift}-{n}")
    ids = [user.id for user in load.acknowledged.values()]
    assert ids == sorted(set(ids))
    with running_server(url) as server:
        async with load.running(server.target):
            await load.until_acknowledged(100)
        later = [user.id for user in load.acknowledged.values()][len(ids) :]
        assert max(later) < min(ids)
        await assert_nothing_lost(load, "clock set back", database, server.target)
