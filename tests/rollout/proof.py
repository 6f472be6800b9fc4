"""The fleet that is rolled, with base's settings, and the clients that must not notice."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any


import grpc_common
from services.user.testing_postgresql import PostgreSQL, running_postgresql
from tests.edges.servers import settings
from tests.rollout.certificates import NAME, Certificates
from tests.rollout.ledger import Ledger, seed
from tests.rollout.load import PAGE, Client, plain_channel
from tools.lab.fleet.fleet import Fleet
from tools.lab.fleet.pod import Timing

PODS = 3

FASTER = 5
"""By which what base has pods wait for at their end is divided: preStop's 5 s are one."""

AGE = 2.0
"""Seconds in place of base's max_connection_age of 30: within a test connections end many times."""

SLOW = 3.0
"""Seconds that the slow readers of a page take. They outlast preStop and a connection's age."""

PROPAGATION = 0.3
"""Seconds until clients hear of a change of endpoints."""

AFTERWARDS = 20
"""Calls that each client must have answered after an event."""

def timing(overlay: list[dict[str, Any]]) -> Timing:
    """Return what takes time in the cluster, as the overlay's Deployment has it."""
    [deployment] = [each for each in overlay if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 0})
    return Timing(
        pre_stop=sleep["seconds"] / FASTER,
        termination_grace=pod["terminationGracePeriodSeconds"],
        propagation=PROPAGATION,
        # A busy machine's probes are late, which is no event of these tests.
        probe_timeout=20,
    )


class Proof:
    """Clients that call a fleet all the time, and their ledger.

    Args:
        fleet: the pods.
        postgresql: the database of all.
        certificates: what pods and clients show each other.
        seeded: the emails of users that no client has created: the first page.

    """

    def __init__(
        self, fleet: Fleet, postgresql: PostgreSQL, certificates: Certificates, seeded: Sequence[str]
    ) -> None:
        self.fleet = fleet
        self.postgresql = postgresql
        self.certificates = certificates
        self.ledger = Ledger()
        self._seeded = seeded

    def balanced(self) -> Client:
        """Return a client of grpc_common, that follows the pods."""
        config = grpc_common.ChannelConfig(channel_args={"grpc.http2.bdp_probe": 0})
        tls = grpc_common.ClientTLS(self.certificates.clients.path)
        return Client(
            "balanced",
            self.ledger,
            lambda: grpc_common.channel(self.fleet.target, tls=tls, config=config, ready_timeout=60),
            slow=SLOW,
        )

    def plain(self, name: str) -> Client:
        """Return a client of grpcio's own, with one connection to the ClusterIP, that heeds no health."""

        def opened() -> Any:
            credentials = self.certificates.of_client()
            return plain_channel(self.fleet.cluster_ip.target, credentials, NAME)

        return Client(name, self.ledger, opened, slow=SLOW)

    @asynccontextmanager
    async def event(self, what: str) -> AsyncIterator[None]:
        """Have what happens in the block fail no call, nor one of those that follow it, and print its row.

        Raises:
            AssertionError: a call has failed, or the database has other users than callers were told.

        """
        calls, began = self.ledger.calls.total(), time.monotonic()
        await self.ledger.more(AFTERWARDS)
        yield
        await self.ledger.more(AFTERWARDS)
        calls, seconds = self.ledger.calls.total() - calls, time.monotonic() - began
        print(f"| {what} | {calls} | {len(self.ledger.failures)} | {seconds:.1f} s |")  # noqa: T201 (the proof)
        assert not self.ledger.failures, self.ledger.lost()
        await self.ledger.check(self.postgresql.url, self._seeded)

    async def losses(self, happens: Callable[[], Any]) -> dict[str, int]:
        """Return the calls that fail by what happens, by client, kind and reason; users are there as told."""
        await self.ledger.more(AFTERWARDS)
        await happens()
        await self.ledger.more(AFTERWARDS)
        lost = dict(self.ledger.lost())
        self.ledger.failures.clear()
        await self.ledger.check(self.postgresql.url, self._seeded)
        return lost


@asynccontextmanager
async def proof(folder: Path, overlay: list[dict[str, Any]]) -> AsyncIterator[Proof]:
    """Run a fleet with the overlay's settings over PostgreSQL, with a page of users.

    KUBECONFIG must lead to where the fleet says, once it runs.
    """
    certificates = Certificates(folder)
    variables = settings(overlay, folder / "config.yaml") | {
        "LOGGING_FORMAT": "json",
        "KEEPALIVE_MAX_CONNECTION_AGE": f"{AGE}s",
        "TLS_DIRECTORY": str(certificates.servers.path),
        "TLS_REQUIRE_CLIENT_CERTIFICATE": "true",
    }
    with running_postgresql() as postgresql:
        url = postgresql.url
        async with Fleet.running(PODS, database=url, variables=variables, timing=timing(overlay)) as fleet:
            yield Proof(fleet, postgresql, certificates, await seed(url, PAGE))
