"""The extension points of servers and channels that the README's table lists; see extension_calls_test.py."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from tempfile import TemporaryDirectory

import grpc
import pytest
import structlog
import trustme
import yaml
from prometheus_client import CollectorRegistry

import grpc_common
from grpc_common import Server, ServerConfig, channel
from grpc_common.testing import configure
from grpc_common.testing.certificates import CertificateDirectory


class Handler:
    """Answers with the request, once `act` is done, and notes the metadata and the time that is left."""

    def __init__(self, act=None):
        self.act = act
        self.metadata = {}
        self.left = 0.0

    async def call(self, request, context):
        """Answer."""
        self.metadata, self.left = dict(context.invocation_metadata()), context.time_remaining()
        if self.act:
            await self.act()
        return request


def add(servicer, server):
    """Register test.Echo."""
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(servicer.call)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


@asynccontextmanager
async def serving(server, servicer=None):
    """Serve `servicer`; yield the port, and the other addresses."""
    server.add(servicer or Handler(), add)
    with structlog.testing.capture_logs() as lines:
        async with server.serving() as port:
            [line] = [line for line in lines if line["event"] == "serving"]
            yield port, line.get("listen", [])


async def answer(address, open_channel=grpc.aio.insecure_channel, **options):
    """Return the answer to a call."""
    async with open_channel(address) as opened:
        return await opened.unary_unary("/test.Echo/Call")(b"hello", timeout=10, **options)


def configured(folder, text, config_class=ServerConfig):
    """Return the configuration that a YAML file has."""
    file = folder / "config.yaml"
    file.write_text(text)
    return configure(config_class, file)


PROPAGATED = """
server:
# region: deadline and request id of a caller, passed on
  propagated_metadata: [x-request-id]
# endregion
"""


async def test_deadline_and_request_id(tmp_path):
    """The calls of a handler have them, without a line of the handler's."""
    backend = Handler()
    async with serving(Server(configure()), backend) as (port, _), channel(f"127.0.0.1:{port}") as behind:

        async def act():
            await behind.unary_unary("/test.Echo/Call")(b"")

        async with serving(Server(configured(tmp_path, PROPAGATED)), Handler(act)) as (front, _):
            await answer(f"127.0.0.1:{front}", metadata=(("x-request-id", "r1"),))
    assert backend.metadata["x-request-id"] == "r1"
    assert 0 < backend.left < 10.2


async def test_resource():
    """It opens before the first call, and closes after the last one."""
    log = []

    @asynccontextmanager
    async def open_pool():
        log.append("opens")
        yield
        log.append("closes")

    async def act():
        log.append("call")

    server = Server(configure())
    # region: resource that is open before SERVING and until the drain's end
    server.use(open_pool())
    # endregion
    async with serving(server, Handler(act)) as (port, _):
        await answer(f"127.0.0.1:{port}")
    assert log == ["opens", "call", "closes"]


PORTS = """
server:
  tls: {{directory: {folder}/tls}}
  listen:
# region: second port: plaintext inside, TLS outside
    - {{address: "127.0.0.1:0", tls: false}}
# endregion
# region: Unix socket
    - {{address: "unix:{sockets}/grpc.sock", tls: false}}
# endregion
"""


async def test_second_port_and_unix_socket(tmp_path):
    """Each serves the same."""
    directory = CertificateDirectory(tmp_path / "tls", trustme.CA()).path
    with TemporaryDirectory() as sockets:  # tmp_path can be longer than the 107 bytes of a socket's path
        server = Server(configured(tmp_path, PORTS.format(folder=tmp_path, sockets=sockets)))
        async with serving(server) as (port, listen):
            secure = partial(channel, tls=grpc_common.ClientTLS(directory))
            assert await answer(f"127.0.0.1:{port}", secure) == b"hello"
            assert [await answer(address) for address in listen] == [b"hello", b"hello"]
    assert len(listen) == 2


COMPRESSED = """
server:
# region: compression, of answers and of requests
  compression: gzip
# endregion
payments:
  target: 127.0.0.1:{port}
# region: compression, of answers and of requests
  compression: gzip
# endregion
"""

CHANNEL = """
# region: settings of a channel in the YAML file
payments:
  target: 127.0.0.1:{port}
  default_deadline: 2s
  max_recv_msg_size: 1MiB
  keepalive: {{time: 20s, timeout: 5s}}
  service: {{retryable_methods: [test.Echo/Call], retry: {{max_attempts: 3}}}}
# endregion
"""


# region: settings of a channel in the YAML file
class Config(ServerConfig):
    """A server that makes calls itself."""

    payments: grpc_common.ChannelSection


# endregion
@pytest.mark.parametrize("text", [COMPRESSED, CHANNEL])
async def test_channel_of_the_yaml_file(tmp_path, text):
    """It has its target, deadline, bounds, retries and compression from there."""
    handler = Handler()
    async with serving(Server(configure(COMPRESSION="gzip")), handler) as (port, _):
        config = configured(tmp_path, text.format(port=port), Config)
        # region: settings of a channel in the YAML file
        async with grpc_common.channel(config.payments) as payments:
            # endregion
            assert await payments.unary_unary("/test.Echo/Call")(b"hello") == b"hello"
    read = yaml.safe_load(text.format(port=port))["payments"]
    assert (config.payments.compression == "gzip") == ("compression" in read)
    assert (handler.left < 2.1) == ("default_deadline" in read)


BUCKETS = """
metrics:
# region: registry and buckets of one's own
  buckets: [1ms, 10ms, 100ms, 1s]
# endregion
  enabled: true
  port: 0
"""


async def ping():
    """Reach what the service depends on."""
    raise ConnectionError


async def test_registry_buckets_and_gauges(tmp_path):
    """The registry has the calls in these buckets, and whether the server and what it needs are up."""
    file = tmp_path / "config.yaml"
    file.write_text(BUCKETS)
    config = configure(ServerConfig, file, METRICS_ENABLED="true")
    # region: registry and buckets of one's own
    registry = CollectorRegistry()
    # endregion
    server = Server(
        config,
        # region: registry and buckets of one's own
        registry=registry,
        # endregion
    )
    # region: gauges of readiness and of each dependency
    server.depend_on("database", ping)
    # endregion
    async with serving(server) as (port, _):
        await answer(f"127.0.0.1:{port}")
        labels = {"port": str(port)}
        assert registry.get_sample_value("grpc_server_ready", labels) == 0
        labels["dependency"] = "database"
        assert registry.get_sample_value("grpc_server_dependency_up", labels) == 0
    bounds = {
        sample.labels["le"]
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "grpc_server_handling_seconds_bucket"
    }
    assert bounds == {"0.001", "0.01", "0.1", "1.0", "+Inf"}


async def test_lag_of_the_event_loop():
    """It is measured without a line of anybody's."""
    registry = CollectorRegistry()
    config = configure(METRICS_ENABLED="true", METRICS_PORT="0")
    # region: lag of the event loop
    # endregion
    async with serving(Server(config, registry=registry)):
        async with asyncio.timeout(10):
            while not registry.get_sample_value("grpc_server_event_loop_lag_seconds_count"):
                await asyncio.sleep(0.05)
