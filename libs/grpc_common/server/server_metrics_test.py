import asyncio
import gc
import subprocess
import sys
import urllib.request
import weakref
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
import trustme
from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from structlog.testing import capture_logs

from grpc_common.config.loading import load
from grpc_common.config.sections import ServerConfig
from grpc_common.core.errors import StartError
from grpc_common.observe.metrics import server_metrics
from grpc_common.server.server import Server
from grpc_common.testing import configure
from grpc_common.testing.certificates import CertificateDirectory

ECHO = {"grpc_type": "unary", "grpc_service": "test.Echo", "grpc_method": "Echo"}
EXPECTED_CODES = ("OK", "Unknown", "DeadlineExceeded", "Internal", "Unavailable", "DataLoss")


async def echo(request, _context):
    """Answer with the request."""
    return request


async def chat(requests, _context):
    """Answer each request."""
    async for request in requests:
        yield request


def add_echo(_servicer, server):
    """Register the service test.Echo."""
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", methods)])


def echo_server(registry, **environ):
    """Return a server of test.Echo."""
    ours = {"METRICS_ENABLED": "true", "METRICS_PORT": "0"}
    server = Server(configure(**ours | environ), registry=registry)
    server.add(None, add_echo)
    return server


async def call(port, times=1):
    """Call Echo."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(times):
            assert await channel.unary_unary("/test.Echo/Echo")(b"x", timeout=10) == b"x"


@asynccontextmanager
async def page_of(registry):
    """Serve test.Echo; yield the port and a function that returns the page of metrics."""
    server = echo_server(registry)
    with capture_logs() as logs:
        serving = server.serving()
        port = await serving.__aenter__()
    metrics_port = next(line["metrics_port"] for line in logs if line["event"] == "serving")
    async with AsyncExitStack() as stack:
        stack.push_async_exit(serving)

        async def page(accept="text/plain"):
            url = f"http://127.0.0.1:{metrics_port}/metrics"
            request = urllib.request.Request(url, headers={"Accept": accept})

            def get():
                with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 (ours)
                    return response.read().decode()

            return await asyncio.to_thread(get)

        yield port, page


def started(registry):
    """Return how many calls of Echo a registry has."""
    return registry.get_sample_value("grpc_server_started_total", ECHO)


async def test_servers_with_registries_of_their_own_are_apart():
    """Each server counts its own calls where it was told to, and nothing is counted elsewhere."""
    first, second = CollectorRegistry(), CollectorRegistry()
    async with echo_server(first).serving() as one, echo_server(second).serving() as two:
        await call(one, 2)
        await call(two, 3)
        assert first.get_sample_value("grpc_server_connections", {"port": str(one)}) is not None
        assert first.get_sample_value("grpc_server_connections", {"port": str(two)}) is None
    assert (started(first), started(second)) == (2, 3)


async def test_servers_with_one_registry_share_the_metrics():
    """Two servers of a process may have the same registry, and their calls are added up."""
    registry = CollectorRegistry()
    async with echo_server(registry).serving() as one, echo_server(registry).serving() as two:
        await call(one, 2)
        await call(two, 3)
    assert started(registry) == 5


async def test_page_is_of_the_server_s_registry():
    """The page has the given registry: calls, connections, log lines, failures of observers, no process."""
    async with page_of(CollectorRegistry()) as (port, page):
        await call(port)
        text = await page()
    for name in ("grpc_server_started_total", "grpc_server_connections", "grpc_observer_failures_total"):
        assert f"\n{name}{{" in text
    assert "# TYPE grpc_log_lines_dropped_total counter" in text
    assert "python_info" not in text


async def test_series_of_known_methods_exist_from_the_start():
    """Before the first call all series that dashboards and alerts ask for are 0; health is not among them."""
    registry = CollectorRegistry()
    async with echo_server(registry).serving():
        chat_labels = ECHO | {"grpc_type": "bidi_stream", "grpc_method": "Chat"}
        for labels in (ECHO, chat_labels):
            for name in (
                "started_total",
                "in_flight",
                "handling_seconds_count",
                "msg_received_total",
                "msg_sent_total",
            ):
                assert registry.get_sample_value(f"grpc_server_{name}", labels) == 0
            for code in EXPECTED_CODES:
                assert (
                    registry.get_sample_value("grpc_server_handled_total", labels | {"grpc_code": code}) == 0
                )
        services = {
            sample.labels["grpc_service"]
            for metric in registry.collect()
            if metric.name == "grpc_server_started"
            for sample in metric.samples
        }
    assert services == {"test.Echo"}


async def test_readiness_and_dependencies_are_gauges():
    """They are 1 or 0 as health says, and gone once the server has ended."""
    registry = CollectorRegistry()
    server = echo_server(registry)
    broken = asyncio.Event()

    async def ping():
        if broken.is_set():
            raise ConnectionError

    async def pong():
        """Succeed."""

    def up(name):
        labels = {"port": str(port), "dependency": name}
        return registry.get_sample_value("grpc_server_dependency_up", labels)

    def ready():
        return registry.get_sample_value("grpc_server_ready", {"port": str(port)})

    server.depend_on("database", ping, interval=0.01, failures=1)
    server.depend_on("cache", pong)
    async with server.serving() as port:
        assert (ready(), up("database"), up("cache")) == (1, 1, 1)
        broken.set()
        async with asyncio.timeout(10):
            while ready():
                await asyncio.sleep(0.01)
        assert (ready(), up("database"), up("cache")) == (0, 0, 1)
    assert (ready(), up("database"), up("cache")) == (None, None, None)


async def test_server_that_drains_is_not_ready():
    """The gauge follows the drain."""
    registry = CollectorRegistry()
    server = echo_server(registry, DRAIN_GRACE="40s")
    async with AsyncExitStack() as stack:
        serving = server.serving()
        port = await serving.__aenter__()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        held = channel.stream_stream("/test.Echo/Chat")()  # or the gauge could be gone before it is looked at
        await held.write(b"x")
        assert await held.read() == b"x"
        end = asyncio.create_task(serving.__aexit__(None, None, None))
        async with asyncio.timeout(20):
            while registry.get_sample_value("grpc_server_ready", {"port": str(port)}):
                await asyncio.sleep(0.01)
        assert registry.get_sample_value("grpc_server_ready", {"port": str(port)}) == 0
        await held.done_writing()
        assert await held.read() is grpc.aio.EOF
        await end


async def test_readiness_of_two_servers_is_apart():
    """With one registry for both, each has a gauge of its own, and the end of one leaves the other's."""

    async def fail():
        raise ConnectionError

    registry = CollectorRegistry()
    sick = echo_server(registry)
    sick.depend_on("database", fail)
    async with echo_server(registry).serving() as well_port:
        async with sick.serving() as sick_port:
            assert registry.get_sample_value("grpc_server_ready", {"port": str(sick_port)}) == 0
            assert registry.get_sample_value("grpc_server_ready", {"port": str(well_port)}) == 1
        assert registry.get_sample_value("grpc_server_ready", {"port": str(sick_port)}) is None
        assert registry.get_sample_value("grpc_server_ready", {"port": str(well_port)}) == 1


async def test_buckets_of_one_s_own():
    """The histogram has the bounds of the setting, in either notation."""
    registry = CollectorRegistry()
    async with echo_server(registry, METRICS_BUCKETS="1ms, 0.5,2s").serving():
        for le in ("0.001", "0.5", "2.0", "+Inf"):
            assert registry.get_sample_value("grpc_server_handling_seconds_bucket", ECHO | {"le": le}) == 0
        assert (
            registry.get_sample_value("grpc_server_handling_seconds_bucket", ECHO | {"le": "0.005"}) is None
        )


def test_one_registry_has_one_set_of_buckets():
    """A second server that asks for other buckets of the same registry is told so."""
    registry = CollectorRegistry()
    echo_server(registry)
    with pytest.raises(StartError, match=r"metrics\.buckets: 0\.1 differ from those of another server"):
        echo_server(registry, METRICS_BUCKETS="100ms")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[]", "name at least one bound"),
        ("[0.1, 0.1]", "0.1 comes after 0.1; write each bound once, the smallest first"),
        ("[1s, 500ms]", "0.5 comes after 1"),
        ("[0, 1]", "greater than 0"),
        ("[-1]", "greater than 0"),
        ("[soon]", "write a number of seconds, or a duration with its unit"),
        ("[.inf]", "metrics.buckets"),
        ("[.nan]", "metrics.buckets"),
        ("[yes]", "metrics.buckets"),
        ("[[1]]", "write a number of seconds"),
        ("0.1", "metrics.buckets: 0.1: Input should be a valid list"),
    ],
)
def test_wrong_buckets_are_explained(tmp_path, written, expected):
    """Each mistake is told with its place and what would be right."""
    file = tmp_path / "config.yaml"
    file.write_text(f"metrics:\n  buckets: {written}\n")
    with pytest.raises(StartError, match=r"metrics\.buckets") as error:
        load(ServerConfig, file, environ={})
    assert expected in str(error.value)


@pytest.mark.parametrize("text", ["nan", "inf", "1_0", "0x1", "1e400", "-1"])
def test_wrong_buckets_in_a_variable_are_explained(text):
    """What Python would take for a number and nobody means is refused in a variable, too."""
    with pytest.raises(StartError, match="METRICS_BUCKETS"):
        load(ServerConfig, environ={"METRICS_BUCKETS": text})


@pytest.mark.parametrize(
    "name",
    [
        "grpc_server_in_flight",
        "grpc_observer_failures",
        "grpc_server_ready",
        "grpc_server_event_loop_lag_seconds",
        "grpc_server_connections",
        "grpc_log_lines_dropped",
    ],
)
async def test_metric_of_one_s_own_with_a_name_of_the_server_s_is_explained(name):
    """Whichever it is, the server does not start, and says which name is taken."""
    registry = CollectorRegistry()
    Gauge(name, "One's own.", registry=registry)
    with pytest.raises(StartError, match=f"the registry has a metric {name} already; .* another name"):
        async with echo_server(registry).serving():
            pass


async def test_certificate_is_in_the_server_s_registry(tmp_path):
    """The expiry of a server's certificate is where its other metrics are."""
    CertificateDirectory(tmp_path / "certs", trustme.CA(), "localhost")
    registry = CollectorRegistry()
    async with echo_server(registry, TLS_DIRECTORY=f"{tmp_path}/certs").serving():
        labels = {"directory": f"{tmp_path}/certs", "use": "server"}
        assert registry.get_sample_value("grpc_tls_certificate_expiry_seconds", labels) > 0
        assert REGISTRY.get_sample_value("grpc_tls_certificate_expiry_seconds", labels) is None


def test_registry_is_not_kept():
    """What the metrics remember of a registry goes with it, so that tests with one each do not pile up."""
    registry = CollectorRegistry()
    server_metrics(registry)
    gone = weakref.ref(registry)
    del registry
    gc.collect()
    assert gone() is None


def test_import_registers_nothing():
    """Whoever imports the library has no series of it until there is a server or a channel."""
    code = (
        "import grpc_common, grpc_common.server.server, grpc_common.client.channel, prometheus_client as p;"
        "print([m.name for m in p.REGISTRY.collect() if m.name.startswith('grpc')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
