import asyncio
from contextlib import AsyncExitStack
from functools import partial

import grpc
import pytest
import pytest_asyncio
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from k8s.checks.rendered import load
from tests.rollout.ledger import PATIENCE
from tests.rollout.load import plain_channel
from tests.rollout.planned import PLANNED
from tests.rollout.proof import proof
from tools.lab import edges

# The loop that the fleet runs in.
pytestmark = pytest.mark.asyncio(loop_scope="module")

EDGES = {"nginx": edges.nginx, "traefik": edges.traefik, "envoy": edges.envoy}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def published(tmp_path_factory):
    """Run a fleet behind all edges, and a client of each; the edges need all of preStop's seconds."""
    async with AsyncExitStack() as stack:
        # What the overlays' servers differ in is of no matter to the other edges.
        running = await stack.enter_async_context(
            proof(tmp_path_factory.mktemp("fleet"), load("nginx-ingress"), mutual_tls=False, faster=1)
        )
        for name, run in EDGES.items():
            folder = tmp_path_factory.mktemp(name)
            opened = channel_to(await stack.enter_async_context(run(folder, running.fleet)))
            await until_heard(opened)
            await stack.enter_async_context(running.through(name, opened).calling())
        yield running


def channel_to(edge):
    """Return what opens a channel to an edge, as a client outside has it."""
    return partial(
        plain_channel, edge["target"], grpc.ssl_channel_credentials(edge["root"].encode()), edge["host"]
    )


async def until_heard(opened):
    """Wait until an edge has heard of pods: one of them refuses the id."""
    code = None
    async with asyncio.timeout(PATIENCE), opened() as channel:
        while code is not grpc.StatusCode.INVALID_ARGUMENT:
            code = await UserServiceStub(channel).GetUser(pb.GetUserRequest(id="none"), timeout=10).code()


@pytest.mark.parametrize("change", PLANNED)
async def test_planned_change_fails_no_call(published, change, tmp_path):
    """Nobody outside notices it, whichever edge is between."""
    await change(published, tmp_path)
