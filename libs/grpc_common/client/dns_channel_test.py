import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import pytest
import trustme
from dnslib import QTYPE, RCODE, RR, A
from dnslib.server import DNSServer

from grpc_common.client.channel import NotReadyError, channel
from grpc_common.testing.backends import Backend
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.tls.credentials import ClientTLS, server_credentials

ECHO = "/test.Backend/Echo"


class Zone:
    """The A records of every name, with a TTL of a second at most."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    def resolve(self, request, _handler):
        reply, name = request.reply(), request.q.qname
        if not self.addresses:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            reply.add_answer(*(RR(name, QTYPE.A, rdata=A(address), ttl=0) for address in self.addresses))
        return reply


class _Silent:
    def __getattr__(self, _name):
        return lambda *_arguments: None


@contextmanager
def dns(zone: Zone):
    """Serve a zone; yield the server's address."""
    server = DNSServer(zone, address="127.0.0.1", port=0, logger=_Silent())
    server.start_thread()
    host, port = server.server.server_address
    yield f"{host}:{port}"
    server.stop()
    server.server.server_close()


@asynccontextmanager
async def pods(count: int, **settings):
    """Serve backends at one port of 127.0.0.1, 127.0.0.2 and so on; yield them and the port."""
    async with AsyncExitStack() as stack:
        first, address = await stack.enter_async_context(Backend.serving(**settings))
        port = address.rpartition(":")[2]
        others = [f"127.0.0.{number}:{port}" for number in range(2, count + 1)]
        served = [
            (await stack.enter_async_context(Backend.serving(other, **settings)))[0] for other in others
        ]
        yield [first, *served], port


async def calls_reach(echo, pod: Backend) -> None:
    """Call until `pod` is called."""
    before = pod.calls
    async with asyncio.timeout(20):
        while pod.calls == before:
            await echo(b"")


async def calls_leave(echo, pod: Backend) -> None:
    """Call until 20 calls in a row do not reach `pod`."""
    calls, before = 0, pod.calls
    async with asyncio.timeout(20):
        while calls < 20:
            await echo(b"")
            calls = calls + 1 if pod.calls == before else 0
            before = pod.calls


async def test_headless_service_is_followed_by_its_records():
    """A pod that comes has traffic, one that goes has none and no call fails, though no connection ends."""
    zone = Zone("127.0.0.1")
    async with pods(2) as (backends, port):
        with dns(zone) as resolver:
            async with channel(f"dns://{resolver}/pods.test:{port}") as client:
                echo = client.unary_unary(ECHO)
                await echo(b"")
                zone.addresses = ("127.0.0.1", "127.0.0.2")
                await calls_reach(echo, backends[1])
                zone.addresses = ("127.0.0.2",)
                await calls_leave(echo, backends[0])
                zone.addresses = ()  # NXDOMAIN: the last pods stay in use
                await asyncio.sleep(1.2)
                await echo(b"")


async def test_name_that_does_not_exist_is_the_reason():
    """Who waits for the channel learns which name could not be resolved."""
    with dns(Zone()) as resolver:
        target = f"dns://{resolver}/nowhere.test:1"
        with pytest.raises(NotReadyError, match=r"^dns://.*: nowhere.test can't be resolved by 127.0.0.1:"):
            await channel(target, ready_timeout=1).__aenter__()


async def test_certificate_is_for_the_name(tmp_path):
    """A server's certificate is checked for the name that was resolved, not for an address."""
    ca = trustme.CA()
    CertificateDirectory(tmp_path / "server", ca, "pods.test")
    client_files = CertificateDirectory(tmp_path / "client", ca, "client.test")
    tls = ClientTLS(client_files.path)
    credentials = server_credentials(tmp_path / "server", require_client_certificate=True)
    async with pods(1, credentials=credentials) as (_backends, port):
        with dns(Zone("127.0.0.1")) as resolver:
            async with channel(f"dns://{resolver}/pods.test:{port}", tls=tls) as client:
                await client.unary_unary(ECHO)(b"")
            with pytest.raises(NotReadyError, match="Hostname Verification Check failed"):
                await channel(f"dns://{resolver}/other.test:{port}", tls=tls, ready_timeout=2).__aenter__()


@pytest.mark.parametrize(("no_proxy", "is_proxied"), [("", True), (".test", False)])
async def test_proxy_resolves_names(monkeypatch, no_proxy, is_proxied):
    """Behind a proxy it gets the name itself; one that no_proxy has is resolved here."""
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    async with pods(1) as (_backends, port), await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("no_proxy", no_proxy)
        with dns(Zone("127.0.0.1")) as resolver:
            target = f"dns://{resolver}/pods.test:{port}"
            if is_proxied:
                with pytest.raises(NotReadyError):
                    await channel(target, ready_timeout=2).__aenter__()
                assert asked[0].startswith(f"CONNECT pods.test:{port} ".encode())
            else:
                async with channel(target) as client:
                    await client.unary_unary(ECHO)(b"")
                assert asked == []
