import asyncio
import ssl
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
async def running(tmp_path_factory):
    """Run a fleet for all edges, which need all of preStop's seconds."""
    folder = tmp_path_factory.mktemp("fleet")
    # What the overlays' servers differ in is of no matter to the other edges.
    async with proof(folder, load("nginx-ingress"), mutual_tls=False, faster=1) as fleet:
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def published(running, tmp_path_factory):
    """Run the edges before it by their names, and a client of each."""
    found = {}
    async with AsyncExitStack() as stack:
        for name, run in EDGES.items():
            folder = tmp_path_factory.mktemp(name)
            found[name] = await stack.enter_async_context(run(folder, running.fleet))
            opened = channel_to(found[name])
            await until_heard(opened)
            await stack.enter_async_context(running.through(name, opened).calling())
        yield found


def channel_to(edge):
    """Return what opens a channel to an edge, as a client outside has it."""
    return partial(plain_channel, edge.target, grpc.ssl_channel_credentials(edge.root.encode()), edge.host)


async def until_heard(opened):
    """Wait until an edge has heard of pods: one of them refuses the id."""
    code = None
    async with asyncio.timeout(PATIENCE), opened() as channel:
        while code is not grpc.StatusCode.INVALID_ARGUMENT:
            await asyncio.sleep(0.05)
            code = await UserServiceStub(channel).GetUser(pb.GetUserRequest(id="none"), timeout=10).code()


async def test_renewed_certificate_fails_no_call(running, published):
    """Neither callers that stay connected notice that an edge's certificate is renewed, nor new ones."""
    async with AsyncExitStack() as stack:
        for name, edge in published.items():
            client = running.through(f"{name}-anew", channel_to(edge))
            await stack.enter_async_context(client.calling_anew())
        async with running.event("certificates of the edges are renewed"):
            await asyncio.gather(*(renewed(edge) for edge in published.values()))


async def renewed(edge):
    """Renew what an edge shows, and wait until a new connection is shown it."""
    before = await shown(edge)
    edge.renew_certificate()
    async with asyncio.timeout(PATIENCE):
        while await shown(edge) == before:
            await asyncio.sleep(0.05)


async def shown(edge):
    """Return the certificate that a new connection is shown, once it is verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=edge.root)
    _, writer = await asyncio.open_connection("127.0.0.1", edge.port, ssl=context, server_hostname=edge.host)
    writer.close()
    return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("change", PLANNED)
async def test_planned_change_fails_no_call(running, change, tmp_path):
    """Nobody outside notices it, whichever edge is between."""
    await change(running, tmp_path)
