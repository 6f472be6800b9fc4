"""What the tests of all edges take: a channel to the file's `edge`, and users behind its `servers`."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from user.user_service_pb2_grpc import UserServiceStub

from tests.edges.servers import PAGE, Servers

# Or a failure would not say what differs.
pytest.register_assert_rewrite("tests.edges.calls")


@pytest_asyncio.fixture(loop_scope="module")
async def channel(edge: Any) -> AsyncIterator[grpc.aio.Channel]:
    """Return a channel to the edge."""
    async with edge.channel() as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> UserServiceStub:
    """Return a stub of the service."""
    return UserServiceStub(channel)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def user_ids(servers: Servers) -> list[str]:
    """Create a page of users, the first ones that there are."""
    return await servers.seed(PAGE)
