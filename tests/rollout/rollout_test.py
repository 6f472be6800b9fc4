import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from k8s.checks.rendered import load
from tests.programs import SERVER
from tests.rollout.planned import PLANNED, replace_certificates
from tests.rollout.proof import proof

# The loop that the fleet runs in.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rolled(tmp_path_factory):
    """Run the fleet and its clients for all tests."""
    folder = tmp_path_factory.mktemp("rollout")
    async with (
        proof(folder, load("traefik"), mutual_tls=True) as running,
        running.balanced().calling(),
        running.plain("short-lived").calling_anew(),
    ):
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connected(rolled):
    """Have a client with one connection too, which can't follow new certificates."""
    async with rolled.plain("one-connection").calling():
        yield rolled


async def test_certificates(rolled, tmp_path):
    """Certificates of both sides are replaced, and so is their authority."""
    await replace_certificates(rolled, tmp_path)


@pytest.mark.parametrize("change", PLANNED)
async def test_planned_change_fails_no_call(connected, change, tmp_path):
    """Neither a client that balances notices it, nor one with a single connection."""
    await change(connected, tmp_path)


UNDRAINED = [
    "env",
    f"PYTHONPATH={os.pathsep.join(sys.path)}",
    sys.executable,
    Path("tests/rollout/undrained.py").absolute(),
]
"""A server without a drain."""

TRIES = 3
"""Pods that a mutated rollout ends, as there are in a fleet: one of them must lose calls."""

MUTATIONS = ["none", "no drain", "no preStop", "a grace that is too short"]


@pytest.mark.parametrize("mutation", MUTATIONS)
async def test_mutation_is_noticed(connected, mutation):
    """A pod that ends without what a rollout needs loses calls, and the ledger has them."""
    lost = Counter()
    for _ in range(TRIES):
        lost += await end_mutated_pod(connected, mutation)
        if lost or mutation == "none":
            break
    print(f"| mutation: {mutation} | {lost.total()} lost: {dict(lost)} |")
    assert bool(connected.ledger.unexcused(lost)) == (mutation != "none")


async def end_mutated_pod(proof, mutation):
    """Add a pod with a mutation, and end it under load; return the calls that are lost by it."""
    fleet = proof.fleet
    variables = {"DRAIN_GRACE": "0.5s"} if mutation == "a grace that is too short" else {}
    fleet.command = UNDRAINED if mutation == "no drain" else [SERVER]
    pod = await fleet.add(variables)
    fleet.command = [SERVER]
    async with proof.attached(pod):
        return await proof.losses(partial(pod.terminate, pre_stop=mutation != "no preStop"))
