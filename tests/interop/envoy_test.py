import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2

from grpc_common import ChannelConfig, ServiceConfig, channel, error_details
from grpc_common.testing.certificates import CertificateDirectory
from tests.interop.echo import SERVICE, Echo
from tests.interop.envoy_proxy import HEALTH_CHECK_INTERVAL, running

ECHO = f"/{SERVICE}/Echo"
SERVERS = 3
CALLERS = 8
FAILED = "/failed_active_hc"
DRAIN = {"delay": f"{20 * HEALTH_CHECK_INTERVAL * 1000:.0f}ms", "grace": "20s"}
"""As in production: before a server takes no more connections, Envoy has asked for its health.

Five checks would do, but for a machine that is busy.
"""


@asynccontextmanager
async def serving(count=SERVERS, **settings):
    """Run servers that know nothing of each other."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Echo.serving(**settings)) for _ in range(count)]


@asynccontextmanager
async def through_envoy(folder, servers, **options):
    """Run Envoy in front of `servers`; yield it, and a channel to it without retries and health checks."""
    ports = [server.port for server in servers]
    async with (
        running(folder, ports, service=SERVICE, **options) as proxy,
        grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}") as client,
    ):
        yield proxy, client


@asynccontextmanager
async def load(client):
    """Call without a pause; yield how the calls have ended so far."""
    outcomes = Counter()
    stopped = asyncio.Event()

    async def call():
        while not stopped.is_set():
            try:
                await client.unary_unary(ECHO)(b"x", timeout=10)
                outcomes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name, error.details()] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLERS):
            tasks.create_task(call())
        try:
            yield outcomes
        finally:
            stopped.set()


async def further_calls(server, count=100):
    """Wait until `server` has got some calls more."""
    goal = server.calls + count
    async with asyncio.timeout(30):
        while server.calls < goal:
            await asyncio.sleep(0.01)


async def test_calls_are_spread_evenly(tmp_path):
    """Over one connection of the client each server gets its share of the calls."""
    async with serving() as servers, through_envoy(tmp_path, servers) as (_proxy, client):
        for _ in range(100 * SERVERS):
            await client.unary_unary(ECHO)(b"x", timeout=10)
        assert [server.calls for server in servers] == [100] * SERVERS


async def roll_out(servers, proxy):
    """Restart one server after the other, as a rollout does."""
    for server in servers:
        await further_calls(server)
        await server.stop()
        assert (await proxy.health())[server.port] == FAILED
        await server.start()
        await proxy.until_health(server.port, "healthy")
        await further_calls(server)


# The connections between Envoy and the servers are renewed all the time if they live that short.
@pytest.mark.parametrize("age", ["30s", "200ms"])
async def test_rollout_fails_no_call(tmp_path, age):
    """Envoy leaves each server that ends, and no call fails, though nobody repeats one."""
    settings = {"drain": DRAIN, "keepalive": {"max_connection_age": age}}
    async with (
        serving(**settings) as servers,
        through_envoy(tmp_path, servers) as (proxy, client),
        load(client) as outcomes,
    ):
        await roll_out(servers, proxy)
    assert outcomes == {"OK": outcomes.total()}


async def test_server_that_is_not_ready_is_left_and_found_again(tmp_path):
    """Envoy follows a server's readiness, its calls go elsewhere meanwhile, and none fails."""
    async with (
        serving() as servers,
        through_envoy(tmp_path, servers) as (proxy, client),
        load(client) as outcomes,
    ):
        tired = servers[0]
        await further_calls(tired)
        tired.ready = False
        await proxy.until_health(tired.port, FAILED)
        await further_calls(servers[1])  # those that were on their way have arrived
        calls = tired.calls
        await further_calls(servers[1])
        assert tired.calls == calls
        tired.ready = True
        await proxy.until_health(tired.port, "healthy")
        await further_calls(tired)
    assert outcomes == {"OK": outcomes.total()}


async def test_no_server_is_ready(tmp_path):
    """With no server left the caller gets a status that it may retry, and why."""
    async with serving(1) as [server], through_envoy(tmp_path, [server]) as (proxy, client):
        server.ready = False
        await proxy.until_health(server.port, FAILED)
        error = await failure(client, "Echo")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "no healthy upstream")


async def failure(client, method, seconds=10.0) -> grpc.aio.AioRpcError:
    """Make a call that must fail; return how it did."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.unary_unary(f"/{SERVICE}/{method}")(b"x", timeout=seconds)
    return caught.value


async def test_streams_pass(tmp_path):
    """A long stream of responses arrives whole; two streams can talk to each other."""
    async with serving(1) as servers, through_envoy(tmp_path, servers) as (_proxy, client):
        count = client.unary_stream(f"/{SERVICE}/Count")(b"5000", timeout=10)
        assert [int(number) async for number in count] == [*range(5000)]
        chat = client.stream_stream(f"/{SERVICE}/Chat")(timeout=10)
        for said in (b"a", b"b" * 100_000, b""):
            await chat.write(said)
            assert await chat.read() == said
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        assert await chat.code() is grpc.StatusCode.OK


async def test_deadline_passes(tmp_path):
    """The server knows the caller's deadline, and its handler is cancelled once that has passed."""
    async with serving(1) as [server], through_envoy(tmp_path, [server]) as (_proxy, client):
        await client.unary_unary(ECHO)(b"x", timeout=70)
        assert server.deadline == pytest.approx(70, abs=10)
        error = await failure(client, "Hang", 2)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(server.hung_up.wait(), 20)


async def test_cancellation_passes(tmp_path):
    """A handler is cancelled when its caller hangs up."""
    async with serving(1) as [server], through_envoy(tmp_path, [server]) as (_proxy, client):
        call = client.unary_unary(f"/{SERVICE}/Hang")(b"x", timeout=10)
        await asyncio.wait_for(server.entered.wait(), 20)
        call.cancel()
        await asyncio.wait_for(server.hung_up.wait(), 20)


async def test_statuses_pass(tmp_path):
    """Code, text and google.rpc details of an error arrive; so does UNIMPLEMENTED."""
    async with serving(1) as servers, through_envoy(tmp_path, servers) as (_proxy, client):
        refused, unknown = await failure(client, "Refuse"), await failure(client, "NoSuch")
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.details() == "name: must not be empty"
    [details] = error_details(refused)
    assert isinstance(details, error_details_pb2.BadRequest)
    assert details.field_violations[0].field == "name"
    assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_channel_through_envoy(tmp_path):
    """grpc_common's channel, told not to ask for health, loses no call in a rollout behind Envoy."""
    config = ChannelConfig(service=ServiceConfig(health_check_service=None))
    async with (
        serving(drain=DRAIN) as servers,
        through_envoy(tmp_path, servers) as (proxy, _client),
        channel(f"127.0.0.1:{proxy.port}", config=config) as client,
        load(client) as outcomes,
    ):
        await roll_out(servers, proxy)
    assert outcomes == {"OK": outcomes.total()}


async def test_health_through_envoy_is_that_of_one_server(tmp_path):
    """A health check that ends at some server behind Envoy stops all calls when that one is not ready.

    That is why a client of a proxy sets `health_check_service=None`: the proxy checks the servers.
    """
    async with (
        serving(2) as servers,
        through_envoy(tmp_path, servers) as (proxy, unchecked),
        channel(f"127.0.0.1:{proxy.port}") as checked,
    ):
        stopped = []
        for server in servers:
            server.ready = False
            await proxy.until_health(server.port, FAILED)
            async with load(unchecked) as outcomes, load(checked) as checked_outcomes:
                await further_calls(next(other for other in servers if other is not server), 200)
            assert outcomes == {"OK": outcomes.total()}
            stopped.append(checked_outcomes != {"OK": checked_outcomes.total()})
            server.ready = True
            await proxy.until_health(server.port, "healthy")
            await checked.channel_ready()
    assert sorted(stopped) == [False, True]


@pytest.fixture
def mutual_tls(tmp_path):
    """Return the settings of a server that asks for certificates, and the folder of one that it takes."""
    ca = trustme.CA()
    server = CertificateDirectory(tmp_path / "server", ca)
    client = CertificateDirectory(tmp_path / "client", ca, "envoy.test")
    settings = {
        "directory": server.path,
        "require_client_certificate": True,
    }
    allowed_callers = {"*": ["envoy.test"], f"/{SERVICE}/Refuse": ["another.test"]}
    return {"tls": settings, "allowed_callers": allowed_callers}, client.path


def tls_context(folder, **common):
    """Return Envoy's context for a server whose certificate the CA in `folder` has signed for localhost."""
    validation = {
        "trusted_ca": {"filename": f"{folder}/ca.crt"},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "localhost"}}],
    }
    return {
        "sni": "localhost",
        "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": validation} | common,
    }


async def test_mutual_tls(tmp_path, mutual_tls):
    """With its certificate Envoy sees the health and makes the calls that its name is allowed to make."""
    settings, folder = mutual_tls
    pair = {
        "certificate_chain": {"filename": f"{folder}/tls.crt"},
        "private_key": {"filename": f"{folder}/tls.key"},
    }
    tls = tls_context(folder, tls_certificates=[pair])
    async with serving(**settings) as servers, through_envoy(tmp_path, servers, tls=tls) as (proxy, client):
        assert await proxy.health() == {server.port: "healthy" for server in servers}
        assert await client.unary_unary(ECHO)(b"x", timeout=10) == b"x"
        error = await failure(client, "Refuse")
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == f"/{SERVICE}/Refuse is not allowed for DNS:envoy.test"


async def test_mutual_tls_without_a_certificate(tmp_path, mutual_tls):
    """An Envoy that has no certificate gets in nowhere."""
    settings, folder = mutual_tls
    async with (
        serving(1, **settings) as [server],
        through_envoy(tmp_path, [server], tls=tls_context(folder)) as (proxy, client),
    ):
        health = await proxy.health()
        assert FAILED in health[server.port]
        assert (await failure(client, "Echo")).code() is grpc.StatusCode.UNAVAILABLE
