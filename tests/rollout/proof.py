"""The fleet that is rolled, with base's settings, and the clients that must not notice."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import grpc_common
from grpc_common.testing.pods import until
from services.user.testing_postgresql import PostgreSQL, running_postgresql
from tests.edges.servers import settings
from tests.rollout.certificates import NAME, Certificates
from tests.rollout.ledger import PATIENCE, Ledger, seed
from tests.rollout.load import PAGE, Client, Opened, plain_channel
from tools.lab.fleet.fleet import Fleet
from tools.lab.fleet.pod import Pod, Timing
from tools.replacing import replace_file

PODS = 3

FASTER = 5
"""By which what base has pods wait for at their end is divided: preStop's 5 s are one."""

AGE = 3.0
"""Seconds in place of base's max_connection_age of 30: within a test connections end many times."""

SLOW = 4.0
"""Seconds that the slow readers of a page take: longer than preStop and than a connection's age."""

SLOWEST = 6.0
"""The same for those who are to be met: longer than a mutation gives them, on a busy machine too."""

PROPAGATION = 0.6
"""Seconds until clients hear of a change of endpoints: less than preStop, as in a cluster it is to be."""

AFTERWARDS = 20
"""Calls that each client must have answered after an event."""


def timing(overlay: list[dict[str, Any]], faster: int) -> Timing:
    """Return what takes time in the cluster, as the overlay's Deployment has it; preStop is `faster`."""
    [deployment] = [each for each in overlay if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 0})
    return Timing(
        pre_stop=sleep["seconds"] / faster,
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
        config: the file that pods read.

    """

    def __init__(
        self,
        fleet: Fleet,
        postgresql: PostgreSQL,
        certificates: Certificates,
        seeded: Sequence[str],
        config: Path,
    ) -> None:
        self.fleet = fleet
        self.postgresql = postgresql
        self.certificates = certificates
        self.ledger = Ledger()
        self._seeded = seeded
        self._config = config

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

    def through(self, name: str, opened: Opened) -> Client:
        """Return a client of whatever `opened` opens a channel to."""
        return Client(name, self.ledger, opened, slow=SLOW)

    def plain(self, name: str, slow: float = SLOW) -> Client:
        """Return a client of grpcio's own, with one connection to the ClusterIP, that heeds no health."""

        def opened() -> Any:
            credentials = self.certificates.of_client()
            return plain_channel(self.fleet.cluster_ip.target, credentials, NAME)

        return Client(name, self.ledger, opened, slow=slow)

    async def change_configuration(self) -> None:
        """Change the file that all pods follow, and wait until each has taken it over."""
        taken: set[Pod] = set()
        changed = asyncio.Event()

        def read(pod: Pod, line: bytes) -> None:
            if b"configuration reloaded" in line:
                taken.add(pod)
                changed.set()

        self.fleet.read_logs(read)
        text = self._config.read_text()
        assert "level: info" in text
        replace_file(self._config, text.replace("level: info", "level: debug"))
        async with asyncio.timeout(PATIENCE):
            while not taken.issuperset(self.fleet.pods):
                changed.clear()
                await changed.wait()

    @asynccontextmanager
    async def attached(self, pod: Pod) -> AsyncIterator[None]:
        """Have kube-proxy give all connections to a pod until endpoints change; one client is busy there."""
        self.fleet.cluster_ip.backends = [pod.target]
        async with self.plain("attached", SLOWEST).calling():
            yield

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
        lost = self.ledger.take_failures()
        print(f"| {what} | {calls} | {lost.total()} | {seconds:.1f} s |")  # noqa: T201 (the proof)
        assert not self.ledger.unexcused(lost), lost
        await self.ledger.check(self.postgresql.url, self._seeded)

    async def losses(self, happens: Callable[[], Any]) -> Counter[str]:
        """Return the calls that fail by what happens, by client, kind and reason; users are there as told."""
        await happens()
        await self.ledger.more(AFTERWARDS)
        lost = self.ledger.take_failures()
        await self.ledger.check(self.postgresql.url, self._seeded)
        return lost


@asynccontextmanager
async def proof(
    folder: Path, overlay: list[dict[str, Any]], *, mutual_tls: bool, faster: int = FASTER
) -> AsyncIterator[Proof]:
    """Run a fleet with the overlay's settings over PostgreSQL, with a page of users, and KUBECONFIG for it.

    Args:
        folder: for files.
        overlay: its objects.
        mutual_tls: whether pods and clients show certificates.
        faster: what preStop's seconds are divided by.

    """
    certificates, config = Certificates(folder), folder / "config.yaml"
    variables = settings(overlay, config) | {
        "LOGGING_FORMAT": "json",
        "KEEPALIVE_MAX_CONNECTION_AGE": f"{AGE}s",
    }
    if mutual_tls:
        variables |= {
            "TLS_DIRECTORY": str(certificates.servers.path),
            "TLS_REQUIRE_CLIENT_CERTIFICATE": "true",
        }
    with running_postgresql() as postgresql, pytest.MonkeyPatch.context() as patch:
        url, times = postgresql.url, timing(overlay, faster)
        async with Fleet.running(PODS, database=url, variables=variables, timing=times) as fleet:
            patch.setenv("KUBECONFIG", str(fleet.api.kubeconfig))
            await until(lambda: len(fleet.dns.addresses) == PODS)  # which takes PROPAGATION
            seeded = await seed(url, PAGE)
            yield Proof(fleet, postgresql, certificates, seeded, config)
