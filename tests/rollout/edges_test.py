from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from k8s.checks.rendered import load
from tests.rollout.edges import running_edges
from tests.rollout.proof import PODS, proof

# The loop that the fleet runs in.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def published(tmp_path_factory):
    """Run a fleet behind all edges, and a client of each; the edges need all of preStop's seconds."""
    folder = tmp_path_factory.mktemp("edges")
    async with AsyncExitStack() as stack:
        # What the overlays' servers differ in is of no matter to the other edges.
        running = await stack.enter_async_context(
            proof(folder, load("nginx-ingress"), mutual_tls=False, faster=1)
        )
        edges = await stack.enter_async_context(running_edges(running.fleet, folder))
        for name, opened in edges.items():
            await stack.enter_async_context(running.through(name, opened).calling())
        yield running


async def test_every_pod_is_replaced(published):
    """Each pod is replaced in turn, and nobody outside notices."""
    async with published.event("edges: every pod is replaced"):
        await published.fleet.roll()


async def test_scales(published):
    """The fleet grows, and shrinks below what it was."""
    for count in (PODS + 1, PODS - 1):
        async with published.event(f"edges: scaled to {count}"):
            await published.fleet.scale(count)
