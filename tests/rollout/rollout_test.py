import asyncio
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from k8s.checks.rendered import load
from services.user.forward_and_back_test import EXPAND
from services.user.testing_releases import Release
from tests.rollout.proof import AGE, PODS, proof

# The loop that the fleet runs in.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rolled(tmp_path_factory):
    """Run the fleet and its clients for all tests."""
    folder = tmp_path_factory.mktemp("rollout")
    with pytest.MonkeyPatch.context() as patch:
        async with proof(folder, load("nginx-ingress")) as running:
            patch.setenv("KUBECONFIG", str(running.fleet.kubeconfig))
            async with running.balanced().calling(), running.plain("short-lived").calling_anew():
                yield running


@pytest_asyncio.fixture(loop_scope="module")
async def connected(rolled):
    """Have a client with one connection too, which can't follow new certificates."""
    async with rolled.plain("one-connection").calling():
        yield rolled


async def test_every_pod_restarts(connected):
    """Each pod is replaced in turn."""
    async with connected.event("every pod is restarted"):
        await connected.fleet.roll()


async def test_certificates(rolled):
    """Certificates of both sides are replaced, and so is their authority."""
    for step in rolled.certificates.steps():
        async with rolled.event(step):
            # Nothing tells when all have taken it. Connections are made anew after this time at the latest.
            await asyncio.sleep(2 * AGE)


async def test_postgresql_restarts(connected):
    """Calls wait for the database, also those that it had begun."""
    async with connected.event("PostgreSQL is restarted"):
        await asyncio.to_thread(connected.postgresql.restart)
