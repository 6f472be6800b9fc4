import asyncio
import socket
from contextlib import asynccontextmanager, closing

import grpc
import pytest
import trustme
import yaml
from click.testing import CliRunner
from google.protobuf import descriptor_pb2, descriptor_pool
from pydantic import ValidationError

import grpc_common
from grpc_common.client.channel_config import ChannelTls
from grpc_common.client.channel_config import Keepalive as ChannelKeepalive
from grpc_common.config.loading import changed, to_yaml
from grpc_common.testing.backends import Backend
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.tls.credentials import server_credentials

ECHO, HOLD = "/test.Backend/Echo", "/test.Backend/Hold"

EVERYTHING = """
payments:
  target: dns:///payments.default:50051
  tls: {directory: /etc/certs, server_name: payments}
  token_file: /etc/token
  keepalive: {time: 20s, timeout: 1500ms}
  max_recv_msg_size: 1MiB
  max_send_msg_size: 2048
  max_metadata_size: 32KiB
  default_deadline: 2s
  default_stream_deadline: 1m
  method_deadlines: {pay.Payments/Pay: 500ms}
  compression: deflate
  channel_args: {grpc.enable_http_proxy: 0, grpc.primary_user_agent: shop}
  service:
    load_balancing: pick_first
    health_check_service: pay.Payments
    retryable_methods: [pay.Payments/Get]
    retry: {max_attempts: 5, initial_backoff: 50ms, max_backoff: 2s, backoff_multiplier: 1.5,
            retryable_codes: [UNAVAILABLE, ABORTED]}
    zone: eu-1a
    slow_start: 30s
    subset: {size: 50, client: web-3}
    retry_throttling: {max_tokens: 1000, token_ratio: 0.5}
    outlier_detection:
      interval: 5s
      base_ejection_time: 10s
      max_ejection_percent: 0
      failure_percentage: 100
      minimum_hosts: 1
      request_volume: 1
"""
"""Each setting of a channel, with a value that is not its default."""


class Config(grpc_common.ServerConfig):
    """A service that calls another one."""

    payments: grpc_common.ChannelSection


async def show(config: Config) -> int:
    """Do nothing."""
    return len(config.payments.target) * 0


@pytest.fixture
def load(tmp_path):
    """Return what reads the text of a file, and variables, as the settings of the channel."""

    def read(text: str, **environ: str) -> grpc_common.ChannelSection:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return grpc_common.load(Config, file, environ).payments

    return read


def test_every_setting_can_stand_in_the_file(load):
    """What a file says is what Python would make with the same words, and no setting is left out."""
    section = load(EVERYTHING)
    assert section == grpc_common.ChannelSection(
        target="dns:///payments.default:50051",
        tls=ChannelTls(directory="/etc/certs", server_name="payments"),
        token_file="/etc/token",
        keepalive=grpc_common.Keepalive(time=20, timeout=1.5),
        max_recv_msg_size=2**20,
        max_send_msg_size=2048,
        max_metadata_size=2**15,
        default_deadline=2,
        default_stream_deadline=60,
        method_deadlines={"pay.Payments/Pay": 0.5},
        compression="deflate",
        channel_args={"grpc.enable_http_proxy": 0, "grpc.primary_user_agent": "shop"},
        service=grpc_common.ServiceConfig(
            load_balancing="pick_first",
            health_check_service="pay.Payments",
            retryable_methods=("pay.Payments/Get",),
            retry=grpc_common.RetryPolicy(
                max_attempts=5,
                initial_backoff=0.05,
                max_backoff=2,
                backoff_multiplier=1.5,
                retryable_codes=("UNAVAILABLE", "ABORTED"),
            ),
            zone="eu-1a",
            slow_start=30,
            subset=grpc_common.Subset(size=50, client="web-3"),
            retry_throttling=grpc_common.RetryThrottling(max_tokens=1000, token_ratio=0.5),
            outlier_detection=grpc_common.OutlierDetection(
                interval=5,
                base_ejection_time=10,
                max_ejection_percent=0,
                failure_percentage=100,
                minimum_hosts=1,
                request_volume=1,
            ),
        ),
    )
    least = Config(payments=grpc_common.ChannelSection(target="a:1"))
    keys = [
        key for key in _keys("payments", EVERYTHING) if key not in changed(Config(payments=section), least)
    ]
    assert keys == []


def _keys(prefix: str, text: str) -> list[str]:
    """Return every setting below `prefix`, after a look that `text` names each."""
    known = [setting for setting in grpc_common.config.settings.settings(Config) if setting.path[0] == prefix]
    values = yaml.safe_load(text)
    for setting in known:
        value = values
        for key in setting.path:
            value = value[key]
    return [setting.key for setting in known]


def test_target_alone_is_enough(load):
    """Everything else has the defaults of a channel that Python makes."""
    section = load("payments: {target: 'kubernetes:///payments.default:50051'}")
    assert section == grpc_common.ChannelSection(target="kubernetes:///payments.default:50051")
    assert section.options() == grpc_common.ChannelConfig().options()
    assert section.client_tls() is None


def test_variables_override_the_file(load):
    """Each setting that is no mapping has a variable."""
    section = load(
        EVERYTHING,
        PAYMENTS_TARGET="b:2",
        PAYMENTS_DEFAULT_DEADLINE="3s",
        PAYMENTS_KEEPALIVE_TIME="6s",
        PAYMENTS_MAX_RECV_MSG_SIZE="3MiB",
        PAYMENTS_COMPRESSION="gzip",
        PAYMENTS_TLS_SERVER_NAME="b",
        PAYMENTS_SERVICE_RETRY_MAX_ATTEMPTS="2",
        PAYMENTS_SERVICE_RETRYABLE_METHODS="a.B/C, a.B/D",
        PAYMENTS_SERVICE_HEALTH_CHECK_SERVICE="none",
    )
    assert (section.target, section.default_deadline, section.keepalive.time) == ("b:2", 3, 6)
    assert (section.max_recv_msg_size, section.compression) == (3 * 2**20, "gzip")
    assert section.client_tls().server_name == "b"
    assert section.service.retry.max_attempts == 2
    assert section.service.retryable_methods == ("a.B/C", "a.B/D")
    assert section.service.health_check_service is None


def test_variables_alone_are_enough():
    """A container without a file has a channel all the same."""
    section = grpc_common.load(Config, environ={"PAYMENTS_TARGET": "a:1"}).payments
    assert section == grpc_common.ChannelSection(target="a:1")


@pytest.mark.parametrize("nothing", ["null", "none", "~", '"none"'])
def test_what_python_calls_none_can_be_written(load, nothing):
    """No retries, no throttling, no health check, no TLS."""
    off = f"retry: {nothing}, retry_throttling: {nothing}, health_check_service: {nothing}"
    section = load(f"payments: {{target: 'a:1', tls: {nothing}, service: {{{off}}}}}")
    assert section == grpc_common.ChannelSection(
        target="a:1",
        service=grpc_common.ServiceConfig(retry=None, retry_throttling=None, health_check_service=None),
    )


def test_empty_section_switches_on(load):
    """`{}` is TLS with the public roots, or default outlier detection; "" is the server's health."""
    on = 'outlier_detection: {}, health_check_service: ""'
    section = load(f"payments: {{target: 'a:1', tls: {{}}, service: {{{on}}}}}")
    assert section.client_tls() == grpc_common.ClientTLS()
    assert section.service == grpc_common.ServiceConfig(outlier_detection=grpc_common.OutlierDetection())


def test_printed_settings_can_be_loaded(load):
    """--print-config's text says the same again, whatever is set."""
    for service in (
        {"retry": None, "retry_throttling": None, "health_check_service": None},
        {"outlier_detection": {"interval": 1}},
    ):
        section = grpc_common.ChannelSection(target="a:1", default_deadline=0.25, service=service)
        assert load(to_yaml(Config(payments=section))) == section
    assert load(to_yaml(Config(payments=load(EVERYTHING)))) == load(EVERYTHING)


def test_command_line_knows_the_channel():
    """--help has key, variable, meaning and default; --print-config the notation of the file."""
    program = grpc_common.command(show, Config)
    terminal = CliRunner(env={"COLUMNS": "300", "PAYMENTS_TARGET": "a:1"})
    words = " ".join(terminal.invoke(program, ["--help"], terminal_width=300).output.split())
    assert " payments.target PAYMENTS_TARGET What to dial" in words
    assert " payments.default_deadline PAYMENTS_DEFAULT_DEADLINE For unary calls" in words
    assert " payments.service.retry.max_attempts PAYMENTS_SERVICE_RETRY_MAX_ATTEMPTS Attempts in all" in words
    assert "[10MiB]" in words
    shown = yaml.safe_load(terminal.invoke(program, ["--print-config"]).output)["payments"]
    assert (shown["default_deadline"], shown["max_recv_msg_size"]) == ("30s", "10MiB")


MISTAKES = {
    "default_deadline: 2": "payments.default_deadline: 2: write a duration with its unit",
    "default_deadline: 0s": "payments.default_deadline: '0s': Input should be greater than 0",
    "default_deadline: none": "payments.default_deadline: 'none': write a duration with its unit",
    "max_recv_msg_size: 10MB of it": "'10MB of it': write a number of bytes, or a size such as 10MiB",
    "max_recv_msg_size: -1": "max_recv_msg_size: -1: write a number of bytes, or a size such as 10MiB",
    "max_recv_msg_size: 4GiB": "payments.max_recv_msg_size: '4GiB': Input should be less than or equal to 2",
    "keepalive: {time: 2s}": "payments.keepalive.time: '2s': is less than 5 s, the servers'",
    "keepalive: {timeout: on}": "payments.keepalive.timeout: True: write a duration with its unit",
    "method_deadlines: {Pay: 1s}": "payments.method_deadlines.Pay: 'Pay': method 'Pay' is not of the form",
    "method_deadlines: {a.B/*: 1s}": "method 'a.B/*' is not of the form package.Service/Method",
    "service: {retryable_methods: ['a.B/*']}": "method 'a.B/*' is not of the form package.Service",
    "keepalive: {timeout: 0.1ms}": "timeout: '0.1ms': Input should be greater than or equal",
    "service: {retry: {initial_backoff: 0.0001ms}}": "initial_backoff: '0.0001ms': Input should be greater",
    "channel_args: {grpc.ssl_target_name_override: x}": "is set by tls.server_name",
    'channel_args: {grpc.primary_user_agent: "\\ud800"}': "write a text, or a whole number of at most 32",
    "method_deadlines: {a.B/C: 1}": "payments.method_deadlines.a.B/C: 1: write a duration with its unit",
    "compression: zstd": "payments.compression: 'zstd': Input should be 'none', 'gzip' or 'deflate'",
    "default_dedline: 1s": "payments.default_dedline: unknown key; did you mean default_deadline?",
    "tls: {dir: /x}": "payments.tls.dir: unknown key; ",
    "tls: /etc/certs": "payments.tls: '/etc/certs': Input should be a valid dictionary",
    "channel_args: {grpc.service_config: x}": "grpc.service_config is set by service",
    "channel_args: {grpc.keepalive_time_ms: 1}": "grpc.keepalive_time_ms is set by keepalive.time",
    "channel_args: {grpc.enable_retries: no}": "False: write a text, or a whole number of at most 32 bits",
    "channel_args: {grpc.enable_retries: 1.5}": "1.5: write a text, or a whole number of at most 32 bits",
    "channel_args: {grpc.enable_retries: 2147483648}": "2147483648: write a text, or a whole number",
    'channel_args: {grpc.primary_user_agent: "a\\0b"}': "write a text, or a whole number of at most 32 bits",
    'channel_args: {"": 1}': "write the name of an option, such as grpc.http2.max_frame_size",
    "service: {load_balancing: random}": "load_balancing: 'random': Input should be 'least_request', ",
    "service: {retryable_methods: [Pay]}": "retryable_methods.0: 'Pay': method 'Pay' is not of the form",
    "service: {retry: {max_attempts: 6}}": "retry.max_attempts: 6: Input should be less than or equal to 5",
    "service: {retry: {max_attempts: 1}}": "max_attempts: 1: Input should be greater than or equal to 2",
    "service: {retry: {retryable_codes: [BUSY]}}": "'BUSY' is no code of an error, such as UNAVAILABLE",
    "service: {retry: {retryable_codes: [OK]}}": "'OK' is no code of an error, such as UNAVAILABLE",
    "service: {subset: {size: 1}}": "subset.size: 1: Input should be greater than or equal to 2",
    "service: {slow_start: 30}": "slow_start: 30: write a duration with its unit",
    "service: {retry: never}": "payments.service.retry: 'never': Input should be a valid dictionary",
    "service: {retry_throttling: {max_tokens: 1001}}": "1001: Input should be less than or equal to 1000",
    "service: {retry_throttling: {token_ratio: 0}}": "token_ratio: 0: Input should be greater than 0",
    "service: {outlier_detection: {interval: 10}}": "interval: 10: write a duration with its unit",
    "service: {outlier_detection: {failure_percentage: 101}}": "101: Input should be less than or equal",
}


@pytest.mark.parametrize(("text", "complaint"), MISTAKES.items())
def test_mistakes_are_told_with_their_line(load, tmp_path, text, complaint):
    """An error has file, line and key, and says what would be right."""
    with pytest.raises(grpc_common.ConfigError) as caught:
        load(f"payments:\n  target: a:1\n  {text}\n")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path}/config.yaml:3: payments.")
    assert complaint in line


def test_token_needs_tls(load):
    """A token is sent with TLS, or on a Unix socket, and nowhere else."""
    with pytest.raises(grpc_common.ConfigError, match="payments: token_file needs tls, or the network would"):
        load("payments: {target: 'a:1', token_file: /token}")
    load("payments: {target: 'a:1', token_file: /token, tls: {}}")
    load("payments: {target: 'unix:/run/a', token_file: /token}")


def test_target_is_required_and_checked(load):
    """A service that does not say what it calls, or says it wrong, does not start."""
    with pytest.raises(
        grpc_common.ConfigError, match=r"^payments\.target: is required; .* as PAYMENTS_TARGET$"
    ):
        grpc_common.load(Config, environ={})
    with pytest.raises(grpc_common.ConfigError, match=r":1: payments\.target: 'a': .* is not of the form"):
        load("payments: {target: a}")
    with pytest.raises(
        grpc_common.ConfigError, match=r"^PAYMENTS_TARGET=.kubernetes:///A.: .* is not of the"
    ):
        load("payments: {target: 'a:1'}", PAYMENTS_TARGET="kubernetes:///A")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: grpc_common.ChannelConfig(default_deadline=True), r"default_deadline\n.* with its unit"),
        (lambda: grpc_common.ChannelConfig(default_deadline="2"), r"default_deadline\n.* with its unit"),
        (lambda: grpc_common.ChannelConfig(default_deadline=float("nan")), r"default_deadline\n.*"),
        (lambda: grpc_common.ChannelConfig(max_send_msg_size=0), r"max_send_msg_size\n.* greater than 0"),
        (lambda: grpc_common.ChannelConfig(deadline=1), r"deadline\n.*Extra inputs"),
        (lambda: ChannelKeepalive(time=1), r"time\n.*less than 5 s"),
        (
            lambda: grpc_common.ChannelConfig(channel_args={"grpc.max_metadata_size": 1}),
            "set by max_metadata_size",
        ),
    ],
)
def test_mistakes_in_python_name_the_field(make, complaint):
    """They are ValueErrors, as they always were."""
    with pytest.raises(ValueError, match=complaint) as caught:
        make()
    assert isinstance(caught.value, ValidationError)


def test_texts_with_units_work_in_python():
    """What a reader has seen in a file can be written in Python."""
    config = grpc_common.ChannelConfig(default_deadline="2s", max_recv_msg_size="1MiB")
    assert config == grpc_common.ChannelConfig(default_deadline=2, max_recv_msg_size=2**20)


async def test_section_is_all_that_a_channel_needs(load, tmp_path):
    """Target, certificates, deadlines and limits of the file hold in real calls."""
    ca = trustme.CA()
    CertificateDirectory(tmp_path / "server", ca, "backend.test")
    CertificateDirectory(tmp_path / "client", ca, "client.test")
    credentials = server_credentials(tmp_path / "server", require_client_certificate=True)
    async with Backend.serving(credentials=credentials) as (backend, address):
        section = load(f"""
payments:
  target: {address}
  tls: {{directory: {tmp_path}/client, server_name: backend.test}}
  default_deadline: 20s
  method_deadlines: {{test.Backend/Hold: 100ms}}
  max_recv_msg_size: 1KiB
""")
        async with grpc_common.channel(section) as client:
            echo = client.unary_unary(ECHO)
            assert await echo(b"a") == b"a"
            assert 10 < backend.deadline < 25
            with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
                await client.unary_unary(HOLD)(b"")
            with pytest.raises(grpc.aio.AioRpcError, match="RESOURCE_EXHAUSTED"):
                await echo(bytes(1025))


@pytest.mark.parametrize("more", [{"tls": grpc_common.ClientTLS()}, {"config": grpc_common.ChannelConfig()}])
async def test_section_and_more_is_refused(more):
    """Two places that say the same would leave open which one counts."""
    section = grpc_common.ChannelSection(target="127.0.0.1:1")
    with pytest.raises(ValueError, match="holds tls and config"):
        await grpc_common.channel(section, **more).__aenter__()


async def test_retryable_methods_come_from_the_proto(load):
    """A file need not list the methods that may be repeated."""
    descriptor = _descriptor()
    async with Backend.serving() as (backend, address):
        text = f"payments: {{target: '{address}', service: {{retry: {{initial_backoff: 10ms}}}}}}"
        section = load(text).for_services(descriptor)
        assert section.service.retryable_methods == ("test.Backend/Echo",)
        assert section.for_services(descriptor) == section
        async with grpc_common.channel(section) as client:
            backend.failures = 2
            assert await client.unary_unary(ECHO)(b"a") == b"a"


def _descriptor():
    """Return a descriptor of test.Backend, whose Echo is idempotent."""
    file = descriptor_pb2.FileDescriptorProto(name="channel_config_test.proto", package="test")
    file.message_type.add(name="Message")
    service = file.service.add(name="Backend")
    service.method.add(name="Create", input_type=".test.Message", output_type=".test.Message")
    method = service.method.add(name="Echo", input_type=".test.Message", output_type=".test.Message")
    method.options.idempotency_level = descriptor_pb2.MethodOptions.IDEMPOTENT
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("test.Backend")


@asynccontextmanager
async def counted(address: str):
    """Stand before a server; yield an address, and a list of the numbers of bytes that a client sends."""
    sent: list[int] = []
    host, port = address.rsplit(":", 1)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: list[int]) -> None:
        with closing(writer):
            while data := await reader.read(2**16):
                counts.append(len(data))
                writer.write(data)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, to_there, sent), pump(there, writer, []), return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0, family=socket.AF_INET)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", sent


@pytest.mark.parametrize(
    ("settings", "options", "small"),
    [
        ("compression: none", {}, False),
        ("compression: gzip", {}, True),
        ("compression: deflate", {}, True),
        ("compression: none", {"compression": grpc.Compression.Gzip}, True),
    ],
)
async def test_messages_are_compressed(load, settings, options, small):
    """A compressible message is small on its way; a call can choose another compression."""
    async with Backend.serving() as (_backend, address), counted(address) as (before, sent):
        section = load(f"payments: {{target: '{before}', {settings}}}")
        async with grpc_common.channel(section) as client:
            assert await client.unary_unary(ECHO)(bytes(500_000), **options) == bytes(500_000)
    assert (sum(sent) < 50_000) is small


async def test_channel_args_reach_grpc(load):
    """Arguments without a field are gRPC's, and go before those that a channel sets by itself."""
    section = load("payments: {target: 'a:1', channel_args: {grpc.max_reconnect_backoff_ms: 100}}")
    assert dict(section.options())["grpc.max_reconnect_backoff_ms"] == 100
    async with Backend.serving() as (backend, address):
        section = load(
            f"payments: {{target: '{address}', channel_args: {{grpc.primary_user_agent: shop/1}}}}"
        )
        async with grpc_common.channel(section) as client:
            await client.unary_unary(ECHO)(b"")
    assert dict(backend.metadata)["user-agent"].startswith("shop/1 ")
