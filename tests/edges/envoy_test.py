import asyncio
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager

import grpc
import pytest
import pytest_asyncio
from user import user_service_pb2 as pb

from k8s.checks.rendered import load
from tests.edges.calls import DEADLINE, create, failure, get
from tests.edges.envoy import EDGES, control_planes
from tests.edges.servers import PAGE, REPLICAS, running_servers, settings
from tests.programs import PATIENCE

# The streams of a minute run while the other tests do.
pytestmark = pytest.mark.asyncio(loop_scope="module")

MINUTE = 61
"""Seconds. Envoy's own timeout of a route is 15, the guide's was 30."""

CALLERS = 8


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """Return the control planes of all edges."""
    with control_planes(tmp_path_factory.mktemp("planes")) as planes:
        yield planes


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def streams(tmp_path_factory, planes):
    """Begin to list users through each edge, from servers that nothing else happens to."""
    with (
        running_servers(**as_deployed(tmp_path_factory), DATABASE_STATEMENT_TIMEOUT="2m") as servers,
        ExitStack() as stack,
    ):
        await servers.seed(PAGE)
        edges = [stack.enter_context(planes.running_edge(name, servers.ports)) for name in EDGES]
        task = asyncio.create_task(list_from_a_stalled_database(servers, edges))
        yield task
        task.cancel()
        await asyncio.wait([task])


async def list_from_a_stalled_database(servers, edges):
    """List a page that has to wait for a minute; return how many users came by each edge, or the error."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(edge.connected()) for edge in edges]
        async with servers.stalled():
            pages = [list_page(edge) for edge in opened]
            await asyncio.sleep(MINUTE)
        return dict(zip(EDGES, [await received(page) for page in pages], strict=True))


async def received(page):
    """Return how many users a page has, or the error that ended it."""
    try:
        return len([user async for user in page])
    except grpc.aio.AioRpcError as error:
        return str(error)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Run servers for the tests that are hard on them."""
    with running_servers(**as_deployed(tmp_path_factory), DATABASE_STATEMENT_TIMEOUT="3s") as running:
        yield running


def as_deployed(tmp_path_factory) -> dict[str, str]:
    """Return the environment of the pods, which but for traces is the same in both overlays."""
    istio_pods, gateway_pods = (
        settings(load(overlay), tmp_path_factory.mktemp("settings") / "config.yaml")
        for overlay in ("istio", "gateway-api")
    )
    differ = {name for name in istio_pods if istio_pods[name] != gateway_pods.get(name)} - {"CONFIG_FILE"}
    assert all(name.startswith(("TRACING_", "OTEL_")) for name in differ)
    assert gateway_pods.keys() <= istio_pods.keys()
    return gateway_pods


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def user_id(servers):
    """Create a page of users; return the id of the first."""
    return (await servers.seed(PAGE))[0]


@pytest.fixture(scope="module", params=EDGES)
def running_edge(request, planes, servers):
    """Run each edge in front of the servers."""
    with planes.running_edge(request.param, servers.ports) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def edge(running_edge):
    """Connect to an edge that has no server ejected and no calls counted."""
    async with running_edge.connected() as edge:
        await until(lambda: ejected(edge, 0))
        await edge.envoy.forget_statistics()
        yield edge


def list_page(edge):
    """List a page of users."""
    return edge.stub.ListUsers(pb.ListUsersRequest(page_size=PAGE), timeout=2 * MINUTE)


async def until(condition):
    """Wait until `await condition()` is true."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_calls_are_spread(edge, servers, user_id):
    """Over one connection of a client each server gets its share of the calls, as far as chance allows."""
    before = servers.calls("GetUser")
    for _ in range(30 * REPLICAS):
        assert (await get(edge.stub, user_id)).id == user_id
    after = servers.calls("GetUser")
    # With fair dice a server gets less than 10 once in 300,000 times.
    assert min(after[number] - before[number] for number in after) >= 10


async def test_slow_reader_keeps_no_server_busy(edge, user_id):
    """A page waits in Envoy for its reader. It would wait in the server, and Envoy lose its end at times."""
    page = list_page(edge)
    async for user in page:
        assert user.id == user_id
        break
    await until(lambda: idle(edge))
    assert len([user async for user in page]) == PAGE - 1


async def idle(edge):
    """Return whether no call is at a server."""
    return (await edge.envoy.calls()).total() == 0


async def test_only_the_service_is_reachable(edge):
    """Health, reflection and services that nobody has are UNIMPLEMENTED; no server hears of the calls."""
    for service in ("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "user.UserServiceV2"):
        call = edge.channel.unary_unary(f"/{service}/Check")(b"", timeout=DEADLINE)
        assert (await failure(call)).code() is grpc.StatusCode.UNIMPLEMENTED
    assert await edge.envoy.total("upstream_rq_total") == 0


async def test_unknown_method_is_refused_by_a_server(edge):
    """A method that the service lacks gets there, and no server is left for saying that it lacks it."""
    for _ in range(10 * REPLICAS):
        call = edge.channel.unary_unary("/user.UserService/NoSuch")(b"")
        assert (await failure(call)).code() is grpc.StatusCode.UNIMPLEMENTED
    assert await edge.envoy.total("upstream_rq_total") == 10 * REPLICAS
    assert await edge.envoy.total("ejections_enforced_total") == 0


@asynccontextmanager
async def reading(edge, user_id):
    """Get and list users without a pause; yield how often that went well. A failed read fails the test."""
    successes = Counter()
    stopped = asyncio.Event()

    async def read():
        while not stopped.is_set():
            await get(edge.stub, user_id)
            assert [user async for user in edge.stub.ListUsers(pb.ListUsersRequest(), timeout=25)]
            successes["read"] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLERS):
            tasks.create_task(read())
        yield successes
        stopped.set()


@contextmanager
def killed(servers, number):
    """End a server as a power failure would, and start it again afterwards."""
    servers.kill(number)
    try:
        yield
    finally:
        servers.start(number)


@contextmanager
def frozen(servers, number):
    """Stop a server's process without ending it: it takes calls and answers none."""
    group = servers.pid(number)
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


async def test_no_read_fails_when_a_server_dies(edge, servers, user_id):
    """Reads that a server takes with it, and those that come before Envoy leaves it, go to the others."""
    async with reading(edge, user_id) as successes:
        os.killpg(servers.pid(0), signal.SIGSTOP)  # so that it has a call when it dies
        await until(lambda: at_server(edge, servers, 0, 1))
        with killed(servers, 0):
            goal = successes["read"] + 100
            await until(lambda: reached(successes, goal))
    assert await edge.envoy.total("upstream_rq_retry_success") > 0


async def at_server(edge, servers, number, calls):
    """Return whether that many calls are at a server."""
    return (await edge.envoy.calls())[servers.ports[number]] >= calls


async def reached(successes, goal):
    """Return whether so many reads have gone well."""
    return successes["read"] >= goal


async def test_create_is_not_repeated_when_its_server_dies(edge, servers):
    """A create that is in flight when its server is killed was tried once; the client is told UNAVAILABLE."""
    before = servers.calls("CreateUser")
    async with servers.stalled():
        call = create(edge.stub, "dying")
        with killed(servers, await servers.called("CreateUser", before)):
            assert (await failure(call)).code() is grpc.StatusCode.UNAVAILABLE
            assert await edge.envoy.total("upstream_rq_total") == 1


async def test_create_is_not_repeated_when_a_server_says_unavailable(edge, servers):
    """A create may have happened though its server says UNAVAILABLE: it was tried once."""
    async with servers.stalled():
        assert (await failure(create(edge.stub, "unlucky"))).code() is grpc.StatusCode.UNAVAILABLE
    assert await edge.envoy.total("upstream_rq_total") == 1


async def test_frozen_server_is_left_and_found_again(edge, servers, user_id):
    """A server that answers nothing is ejected, others take its reads, and once it is well it gets calls."""
    async with asyncio.TaskGroup() as reads:
        with frozen(servers, 0):
            while not await at_server(edge, servers, 0, 5):
                for _ in range(CALLERS):
                    reads.create_task(get(edge.stub, user_id))
                await asyncio.sleep(0.1)
            await until(lambda: ejected(edge, 1))
            for _ in range(CALLERS):  # nobody waits for the frozen server, as long as a try may take: 8 s
                assert (await asyncio.wait_for(get(edge.stub, user_id), 6)).id == user_id
    before = servers.calls("GetUser")[0]
    await until(lambda: ejected(edge, 0))
    while servers.calls("GetUser")[0] == before:
        await get(edge.stub, user_id)


async def ejected(edge, count):
    """Return whether that many servers are ejected."""
    return await edge.envoy.total("ejections_active") == count


@pytest.mark.parametrize("name", EDGES)
async def test_stream_of_a_minute_arrives_whole(streams, name):
    """A page of users that takes its server more than a minute is not cut."""
    assert (await streams)[name] == PAGE
