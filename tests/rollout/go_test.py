import os
from pathlib import Path

import pytest
import pytest_asyncio

from k8s.checks.rendered import load
from tests.rollout.go_client import go_client
from tests.rollout.planned import PLANNED, replace_certificates
from tests.rollout.proof import proof

PROGRAM = os.environ.get("ROLLOUT_CLIENT")

pytestmark = [
    # The loop that the fleet runs in.
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        PROGRAM is None,
        reason="$ROLLOUT_CLIENT names no client of grpc-go; with Go it is had by "
        "`go build -C tests/rollout/go -o $ROLLOUT_CLIENT .`",
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def called(tmp_path_factory):
    """Run a fleet, and a client of grpc-go with mutual TLS that balances over the headless Service."""
    folder = tmp_path_factory.mktemp("go")
    async with proof(folder, load("traefik"), mutual_tls=True) as running:
        dns, port = running.fleet.dns, running.fleet.pods[0].port
        target = f"dns://{dns.server}/{dns.name}:{port}"
        certificates = running.certificates.clients.path
        async with go_client(Path(PROGRAM), target, certificates, running.ledger):
            yield running


@pytest.mark.parametrize("change", [replace_certificates, *PLANNED])
async def test_planned_change_fails_no_call(called, change, tmp_path):
    """A client that knows DNS and its files alone does not notice it."""
    await change(called, tmp_path)
