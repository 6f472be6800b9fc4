"""A server with several listeners, over real sockets."""

import asyncio
import os
import socket
import stat
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import structlog
import trustme
import yaml
from prometheus_client import REGISTRY

from grpc_common import Server, ServerConfig, load
from grpc_common.core.ports import BindError
from grpc_common.testing.certificates import CertificateDirectory


async def echo(request: bytes, _context) -> bytes:
    """Answer with the request."""
    return request


async def stream(request: bytes, _context):
    """Answer with as many messages as the request says."""
    for _ in range(int(request)):
        yield bytes(100_000)


def add(_servicer, server) -> None:
    """Register test.Echo."""
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


def configured(folder: Path, listen: list[dict], **server) -> ServerConfig:
    """Return the configuration of a file with these listeners."""
    file = folder / "config.yaml"
    drain = {"delay": "0s", "grace": "20s"}
    section = {"port": 0, "host": "127.0.0.1", "drain": drain, "listen": listen, **server}
    file.write_text(yaml.safe_dump({"server": section, "metrics": {"enabled": False}}))
    return load(ServerConfig, file, environ={})


@asynccontextmanager
async def serving(config: ServerConfig):
    """Serve test.Echo; yield the addresses as the log names them, the main one first."""
    server = Server(config)
    server.add(None, add)
    with structlog.testing.capture_logs() as lines:
        async with server.serving() as port:
            [line] = [line for line in lines if line["event"] == "serving"]
            yield SimpleNamespace(
                port=port, addresses=[f"127.0.0.1:{port}", *line.get("listen", [])], lines=lines
            )


async def answer(address: str, credentials: grpc.ChannelCredentials | None = None) -> bytes:
    """Return the answer to a call."""
    secure, insecure = grpc.aio.secure_channel, grpc.aio.insecure_channel
    async with secure(address, credentials) if credentials else insecure(address) as channel:
        return await channel.unary_unary("/test.Echo/Echo")(b"hello", timeout=10)


async def code(address: str, credentials: grpc.ChannelCredentials | None = None) -> str:
    """Return how a call ends."""
    try:
        await answer(address, credentials)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.fixture(scope="module")
def ca():
    """Return an authority."""
    return trustme.CA()


@pytest.fixture
def tmp_path():
    """Return a folder in place of pytest's, whose name is too long for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def certificates(ca, tmp_path):
    """Return a directory with certificates."""
    return CertificateDirectory(tmp_path / "certs", ca)


def credentials(ca, *names: str) -> grpc.ChannelCredentials:
    """Return what a client needs, with a certificate if it has names."""
    if not names:
        return grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    leaf = ca.issue_cert(*names)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    return grpc.ssl_channel_credentials(ca.cert_pem.bytes(), leaf.private_key_pem.bytes(), chain)


async def test_each_listener_serves_the_same(tmp_path):
    """A call gets its answer on the port, on every further address and on a Unix socket."""
    listen = [
        {"address": "127.0.0.1:0"},
        {"address": ":0"},
        {"address": "[::1]:0"},
        {"address": "localhost:0"},
        {"address": f"unix:{tmp_path}/s"},
    ]
    async with serving(configured(tmp_path, listen)) as server:
        assert len(server.addresses) == len(listen) + 1
        for address in server.addresses:
            target = f"127.0.0.1{address}" if address.startswith(":") else address
            assert await answer(target) == b"hello"


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("", {"127.0.0.1", "127.0.0.2", "::1"}),
        ("127.0.0.1", {"127.0.0.1"}),
        ("127.0.0.2", {"127.0.0.2"}),
        ("::1", {"::1"}),
        ("localhost", {"127.0.0.1", "::1"}),
    ],
)
async def test_host_says_who_reaches_the_ports(tmp_path, host, reached):
    """The port and the health port take connections to the host alone, and to all interfaces without one."""
    async with serving(configured(tmp_path, [], host=host, health_port=0)) as server:
        [line] = [line for line in server.lines if line["event"] == "serving"]
        for port in (server.port, line["health_port"]):
            assert {each for each in ("127.0.0.1", "127.0.0.2", "::1") if connects(each, port)} == reached


def connects(host: str, port: int) -> bool:
    """Return whether somebody listens."""
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True


async def test_tls_outside_and_plaintext_inside(tmp_path, ca, certificates):
    """With a directory listeners are encrypted unless they say otherwise, all with the newest certificate."""
    listen = [
        {"address": "127.0.0.1:0"},
        {"address": "127.0.0.1:0", "tls": False},
        {"address": f"unix:{tmp_path}/s", "tls": False},
    ]
    async with serving(configured(tmp_path, listen, tls={"directory": str(certificates.path)})) as server:
        main, outside, inside, unix = server.addresses
        assert [await code(each, credentials(ca)) for each in (main, outside)] == ["OK", "OK"]
        assert [await code(each) for each in (inside, unix)] == ["OK", "OK"]
        assert [await code(each) for each in (main, outside)] == ["UNAVAILABLE", "UNAVAILABLE"]
        certificates.ca = other = trustme.CA()
        certificates.rotate()
        assert [await code(each, credentials(other)) for each in (main, outside)] == ["OK", "OK"]


async def test_caller_without_a_certificate_is_refused_where_one_is_needed(tmp_path, ca, certificates):
    """A plaintext listener lets callers in, but not to methods that only some may call."""
    listen = [{"address": "127.0.0.1:0", "tls": False}, {"address": f"unix:{tmp_path}/s", "tls": False}]
    tls = {
        "directory": str(certificates.path),
        "require_client_certificate": True,
    }
    allowed_callers = {"/test.Echo/Echo": ["web"]}
    async with serving(configured(tmp_path, listen, tls=tls, allowed_callers=allowed_callers)) as server:
        main, *plain = server.addresses
        assert await code(main, credentials(ca, "web")) == "OK"
        assert await code(main, credentials(ca, "other")) == "PERMISSION_DENIED"
        assert [await code(each) for each in plain] == ["UNAUTHENTICATED", "UNAUTHENTICATED"]


async def test_taken_address_names_its_setting(tmp_path):
    """The error has the address, the reason and the key, and the socket file made before it is removed."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        listen = [{"address": f"unix:{tmp_path}/s"}, {"address": f"127.0.0.1:{port}"}]
        with pytest.raises(BindError) as raised:
            async with serving(configured(tmp_path, listen)):
                pass
        assert str(raised.value) == (
            f"127.0.0.1:{port} can't be served (Address already in use); "
            "set server.listen.1.address to another one, or its port to 0 for a free one"
        )
        assert not (tmp_path / "s").exists()
        with pytest.raises(BindError, match=r"set GRPC_PORT, or server.host, to another one"):
            async with serving(configured(tmp_path, [], port=port)):
                pass


async def test_foreign_host_is_a_clear_error(tmp_path):
    """An address that this machine does not have can't be served."""
    with pytest.raises(
        BindError, match=r"192\.0\.2\.1:0 can't be served .*assign requested address.*server.host"
    ):
        async with serving(configured(tmp_path, [], host="192.0.2.1")):
            pass


def regular_file(path: Path) -> None:
    """Leave a file."""
    path.write_text("mine")


def symlink(path: Path) -> None:
    """Leave a link to somebody's file."""
    path.with_name("other").write_text("mine")
    path.symlink_to("other")


@pytest.mark.parametrize("make", [regular_file, symlink, Path.mkdir])
async def test_what_is_no_socket_is_never_replaced(tmp_path, make):
    """A file, a link or a folder at the path keeps the server from starting, and stays."""
    path = tmp_path / "s"
    make(path)
    before = path.lstat()
    with pytest.raises(BindError, match=r"no socket\); set server.listen\.0.address to another one$"):
        async with serving(configured(tmp_path, [{"address": f"unix:{path}"}])):
            pass
    assert path.lstat() == before
    assert {each.name for each in tmp_path.iterdir()} <= {"s", "other", "config.yaml"}


async def test_socket_of_a_live_server_is_not_taken(tmp_path):
    """The second server does not start, and the first goes on to be reached."""
    config = configured(tmp_path, [{"address": f"unix:{tmp_path}/s"}])
    async with serving(config) as first:
        with pytest.raises(BindError, match="Address already in use"):
            async with serving(config):
                pass
        assert await answer(first.addresses[1]) == b"hello"


async def test_socket_of_a_killed_process_is_replaced(tmp_path):
    """A file that nobody listens on any more does not keep a server from starting."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    async with serving(configured(tmp_path, [{"address": f"unix:{path}"}])) as server:
        assert await answer(server.addresses[1]) == b"hello"


async def test_socket_is_removed_at_the_end(tmp_path):
    """Nothing stays in the folder, and nothing else is ever there under another name."""
    async with serving(configured(tmp_path, [{"address": f"unix:{tmp_path}/s"}])):
        assert {each.name for each in tmp_path.iterdir()} == {"s", "config.yaml"}
    assert {each.name for each in tmp_path.iterdir()} == {"config.yaml"}


async def test_socket_of_the_next_server_is_left_alone(tmp_path):
    """A server that ends does not remove the file that its successor has at the same path."""
    path = tmp_path / "s"
    config = configured(tmp_path, [{"address": f"unix:{path}"}])
    async with serving(config):
        path.unlink()
        successor = serving(config)
        server = await successor.__aenter__()
    assert await answer(server.addresses[1]) == b"hello"
    await successor.__aexit__(None, None, None)
    assert not path.exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700)])
async def test_permissions_of_a_socket_are_as_the_umask_says(tmp_path, umask, mode):
    """Who may write to it may connect."""
    before = os.umask(umask)
    try:
        async with serving(configured(tmp_path, [{"address": f"unix:{tmp_path}/s"}])):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("last", ["s", "s" * 15])
async def test_longest_path_is_served(tmp_path, last):
    """A path of 107 bytes works, however short its last part is."""
    with tempfile.TemporaryDirectory() as top:  # pytest's folders are too long
        path = Path(top) / ("d" * (105 - len(top) - len(last))) / last
        path.parent.mkdir()
        assert len(str(path)) == 107
        async with serving(configured(tmp_path, [{"address": f"unix:{path}"}])) as server:
            assert await answer(server.addresses[1]) == b"hello"


async def test_connections_are_counted_by_port(tmp_path):
    """Each TCP listener has its own series."""
    config = configured(tmp_path, [{"address": "127.0.0.1:0"}])
    config = config.model_copy(
        update={"metrics": config.metrics.model_copy(update={"enabled": True, "port": 0})}
    )
    async with serving(config) as server:
        for address in server.addresses:
            port = address.rpartition(":")[2]
            with socket.create_connection(("127.0.0.1", int(port))):
                while REGISTRY.get_sample_value("grpc_server_connections", {"port": port}) != 1:
                    await asyncio.sleep(0.01)


async def test_drain_closes_every_listener(tmp_path):
    """Nobody can connect any more while a call goes on, and the call gets its answer."""
    entered, opened = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, _context) -> bytes:
        entered.set()
        await opened.wait()
        return request

    def add_gate(_servicer, server) -> None:
        handlers = {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Gate", handlers)])

    path = tmp_path / "s"
    server = Server(configured(tmp_path, [{"address": "localhost:0"}, {"address": f"unix:{path}"}]))
    server.add(None, add_gate)
    with structlog.testing.capture_logs() as lines:
        async with server.serving() as port:
            listen = next(line["listen"] for line in lines if line["event"] == "serving")
            second = int(listen[0].rpartition(":")[2])
            channel = grpc.aio.insecure_channel(f"unix:{path}")
            call = channel.unary_unary("/test.Gate/Wait")(b"hello", timeout=30)
            await entered.wait()

            async def open_once_closed() -> None:
                addresses = [("127.0.0.1", port), ("127.0.0.1", second), ("::1", second)]
                while path.exists() or any(connects(*each) for each in addresses):
                    await asyncio.sleep(0.01)
                opened.set()

            opening = asyncio.create_task(open_once_closed())
    async with channel, asyncio.timeout(30):
        await opening
        assert await call == b"hello"
    warnings = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert not [event for event in warnings if not event.startswith("event loop")]  # on a busy machine


CALLERS = 8
STOPS = 5


async def test_drain_of_two_listeners_under_load_fails_no_call(tmp_path):
    """A server that stops and starts under load on a port and a Unix socket fails no call on either."""
    path = tmp_path / "s"
    keepalive = {"max_connection_age": "200ms"}
    config = configured(tmp_path, [{"address": f"unix:{path}"}], keepalive=keepalive)
    async with serving(config) as first:
        port = first.port
    config = configured(tmp_path, [{"address": f"unix:{path}"}], keepalive=keepalive, port=port)
    stopped, done, failed = asyncio.Event(), {"tcp": 0, "unix": 0}, []

    async def call(kind: str, channel: grpc.aio.Channel) -> None:
        while not stopped.is_set():
            try:
                await channel.unary_unary("/test.Echo/Echo")(b"x", timeout=20, wait_for_ready=True)
                async for _ in channel.unary_stream("/test.Echo/Stream")(
                    b"3", timeout=20, wait_for_ready=True
                ):
                    pass
                done[kind] += 1
            except grpc.aio.AioRpcError as error:
                failed.append((kind, error.code(), error.details()))

    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as tcp,
        grpc.aio.insecure_channel(f"unix:{path}", options=options) as unix,
    ):
        channels = [("tcp", tcp), ("unix", unix)] * (CALLERS // 2)
        callers = [asyncio.create_task(call(kind, channel)) for kind, channel in channels]
        for _ in range(STOPS):
            async with serving(config), asyncio.timeout(20):
                before = dict(done)
                while any(done[kind] < before[kind] + 5 for kind in done):
                    await asyncio.sleep(0.01)
        async with serving(config):  # for the last calls, which wait
            stopped.set()
            await asyncio.gather(*callers)
    # A connection that is too old may lose its last answer; see drain_test.py.
    assert [each for each in failed if "max_age" not in each[2]] == []
