import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import grpc
import pytest
import structlog
import trustme

from grpc_common.client.channel import channel
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.pods import Load, Words, pods, until
from grpc_common.tls.credentials import ClientTLS, server_credentials

NAME = "kubernetes:///backend.test:50051"
REFUSED = "new certificate refused, the old one stays in use"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Have files be looked at all the time."""
    monkeypatch.setattr("grpc_common.client.renewal._INTERVAL", 0.02)
    monkeypatch.setattr("grpc_common.client.renewal._REFUSED_INTERVAL", 0.1)


class Fleet:
    """Servers in two groups, each with the CAs that it trusts, and a client whose certificate changes."""

    def __init__(self, folder):
        self.ca, self.next_ca = trustme.CA(), trustme.CA()
        self.servers = [CertificateDirectory(folder / name, self.ca, "backend.test") for name in "ab"]
        self.client = CertificateDirectory(folder / "client", self.ca, "client.test")
        self.pods = []

    @asynccontextmanager
    async def serving(self, *counts):
        """Serve so many pods of each group."""
        async with AsyncExitStack() as stack:
            for directory, count in zip(self.servers, counts, strict=False):
                credentials = partial(server_credentials, directory.path, require_client_certificate=True)
                self.pods += await stack.enter_async_context(pods(count, credentials=credentials))
            yield self.pods

    def trust(self, *groups):
        """Have servers trust the next CA as well."""
        both = self.ca.cert_pem.bytes() + self.next_ca.cert_pem.bytes()
        for group in groups:
            directory = self.servers[group]
            directory.replace(directory.issue() | {"ca.crt": both})

    def rotate(self, ca):
        """Give the client a new certificate, of this CA; return it."""
        leaf = ca.issue_cert("client.test")
        certificate = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        files = {"tls.crt": certificate, "tls.key": leaf.private_key_pem.bytes()}
        self.client.replace(self.client.issue() | files)
        return certificate

    def channel(self, words, **options):
        """Open the client's channel."""
        return channel(NAME, tls=ClientTLS(self.client.path), endpoints=words, **options)


@pytest.fixture
def fleet(tmp_path):
    """Servers that trust one CA, and a client with a certificate of it."""
    return Fleet(tmp_path)


def rounds(logs):
    """Return what the log has of refusals."""
    return [entry["reasons"] for entry in logs if entry["event"] == REFUSED]


async def test_one_after_the_other(fleet):
    """A rotation costs one connection for each endpoint, never two at the same time, and no call."""
    async with fleet.serving(6) as served:
        for pod in served:
            pod.connect_time = 0.05
        async with fleet.channel(Words(served)) as opened, Load(opened).of(4) as load:
            await until(lambda: all(pod.calls for pod in served))
            certificate = fleet.rotate(fleet.ca)
            most = 0
            while not all(pod.certificate == certificate for pod in served):
                most = max(most, sum(pod.open for pod in served))
                await asyncio.sleep(0.005)
            await until(lambda: sum(pod.open for pod in served) >= 6)
        assert load.failures == []
    assert [pod.connections for pod in served] == [2] * 6
    assert most <= 6 + 2  # a new one, and one that the pod of the last one has not yet seen go


async def test_attributes_that_change_meanwhile(fleet):
    """A connection with the new certificate has the attributes that its endpoint has now."""
    async with fleet.serving(1) as served:
        address = served[0].address
        words = Words([Endpoint(address)])
        async with fleet.channel(words) as opened, Load(opened).of(1):
            served[0].connect_time = 0.3
            fleet.rotate(fleet.ca)
            await until(lambda: served[0].connections == 2)
            await words.say([Endpoint(address, zone="a")])
            balancer = opened.balancer
            before = balancer.subchannels[address]
            await until(lambda: balancer.subchannels[address] is not before)
            assert balancer.subchannels[address].endpoint.zone == "a"


async def test_certificate_that_is_refused(fleet):
    """It replaces none that works, whatever comes meanwhile, until the servers trust its CA."""
    async with fleet.serving(3) as served:
        first, second, late = served
        words = Words([first, second])
        with structlog.testing.capture_logs() as logs:
            async with fleet.channel(words) as opened, Load(opened).of(4) as load:
                certificate = fleet.rotate(fleet.next_ca)
                await until(lambda: len(rounds(logs)) >= 3)
                connections = first.connections
                await until(lambda: len(rounds(logs)) >= 6)
                assert first.connections <= connections + 3  # one for each time that it is asked
                assert rounds(logs)[-1] == [f"{pod.address} does not take it" for pod in (first, second)]
                await words.say(served)
                await until(lambda: late.calls)
                assert certificate not in [pod.certificate for pod in served]
                fleet.trust(0)
                await until(lambda: all(pod.certificate == certificate for pod in served))
                count = len(rounds(logs))
                await asyncio.sleep(0.3)
            assert load.failures == []
        assert len(rounds(logs)) == count


async def test_half_of_the_fleet_refuses(fleet):
    """Each server sees the certificate that it takes, new ones of both kinds too."""
    fleet.trust(1)
    async with fleet.serving(3, 3) as served:
        old, new = served[:3], served[3:]
        words = Words([*old[:2], *new[:2]])
        with structlog.testing.capture_logs() as logs:
            async with fleet.channel(words) as opened, Load(opened).of(4) as load:
                certificate = fleet.rotate(fleet.next_ca)
                await until(lambda: all(pod.certificate == certificate for pod in new[:2]))
                await words.say(served)
                await until(lambda: old[2].calls and new[2].certificate == certificate)
                assert certificate not in [pod.certificate for pod in old]
                fleet.trust(0)
                await until(lambda: all(pod.certificate == certificate for pod in served))
            assert load.failures == []
        assert rounds(logs)[0] == [f"{pod.address} does not take it" for pod in old[:2]]


async def test_old_certificate_that_works_no_more(fleet):
    """When no server takes the old one, the new one is in use at once."""
    fleet.rotate(fleet.next_ca)  # which nobody trusts
    async with fleet.serving(3) as served, fleet.channel(Words(served), ready_timeout=None) as opened:
        echo = opened.unary_unary("/test.Backend/Echo")
        with pytest.raises(grpc.aio.AioRpcError):
            await echo(b"")
        certificate = fleet.rotate(fleet.ca)
        async with asyncio.timeout(5):
            while not all(pod.certificate == certificate for pod in served):
                await echo(b"", wait_for_ready=True)


async def test_server_that_restarts_and_still_refuses(fleet):
    """Nor does a server that was away for a moment get a certificate that it refuses."""
    async with fleet.serving(2) as served:
        first = served[0]
        with structlog.testing.capture_logs() as logs:
            async with fleet.channel(Words(served)) as opened, Load(opened).of(2) as load:
                fleet.rotate(fleet.next_ca)
                await until(lambda: len(rounds(logs)) == 2)
                await first.go_down()
                count = len(rounds(logs))
                await until(lambda: len(rounds(logs)) > count + 2)
                lost = list(load.failures)
                first.come_up()
                calls = first.calls
                await until(lambda: first.calls > calls)
            # A caller loses what is on the way, and may try the connection once more while it breaks.
            assert len(lost) <= 4
            assert load.failures == lost


async def test_hundred_rotations_of_a_fleet(fleet):
    """No call fails, and no connection is left behind."""
    async with fleet.serving(3) as served:
        async with fleet.channel(Words(served)) as opened, Load(opened).of(4) as load:
            for _ in range(34):
                certificate = fleet.rotate(fleet.ca)
                await until(lambda certificate=certificate: served[0].certificate == certificate)
            await until(lambda: all(pod.certificate == certificate for pod in served))
            await until(lambda: sum(pod.open for pod in served) >= 3)
        assert load.failures == []
    assert max(pod.connections for pod in served) <= 35
