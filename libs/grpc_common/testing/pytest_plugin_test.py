"""The fixture `serve` serves what a test gives it, and stops it when the test ends, however it ends."""

import asyncio
import contextlib
import functools
import os
import re
import subprocess
import sys

import grpc
import pytest

import grpc_common
from grpc_common.testing import RecordedCalls, configure, recorded_calls

pytest_plugins = ["grpc_common.testing.pytest_plugin"]


class ConflictError(Exception):
    """A team's exception."""


def add_echo(servicer, server) -> None:
    """Register `test.Echo`, whose method Say is `servicer`."""
    method = grpc.unary_unary_rpc_method_handler(servicer)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Say": method})])


async def echo(request, _context):
    """Answer with the request."""
    return request


async def say(channel, text: bytes = b"x") -> bytes:
    """Call the method."""
    return await channel.unary_unary("/test.Echo/Say")(text, timeout=10)


async def test_serves_several_servers(serve):
    """Each call of the fixture makes a server of its own, with what Server takes."""

    async def fail(_request, _context):
        raise ConflictError

    first = await serve(echo, add_echo)
    second = await serve(fail, add_echo, errors={ConflictError: grpc.StatusCode.ABORTED})
    assert await say(first) == b"x"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(second)
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_settings_are_those_of_production(serve):
    """A configuration is given as the variables that a deployment would set."""

    async def hang(_request, _context):
        await asyncio.Event().wait()

    channel = await serve(hang, add_echo, config=configure(DEFAULT_DEADLINE="50ms"))
    with pytest.raises(grpc.aio.AioRpcError, match="longer than 50ms"):
        await channel.unary_unary("/test.Echo/Say")(b"")


def test_wrong_settings_are_named():
    """A mistake in a setting is told as a server would tell it."""
    with pytest.raises(grpc_common.ConfigError, match="DEFAULT_DEADLINE='soon'"):
        configure(DEFAULT_DEADLINE="soon")
    with pytest.raises(TypeError, match="ServerConfig has no variable DEADLINE"):
        configure(DEADLINE="1s")


def test_settings_of_a_service_with_a_prefix():
    """The port is free and metrics are off for a service whose variables begin with a prefix, too."""

    class Config(grpc_common.ServerConfig):
        env_prefix = "USER_"

    config = configure(Config, USER_MAX_CONCURRENT_CALLS="7")
    assert (config.server.port, config.metrics.enabled, config.server.max_concurrent_calls) == (0, False, 7)


def test_sections_are_those_of_the_file():
    """What has no variable is given as in the file, beside the kit's settings and under the variables."""
    allowed = {"*": ["subject:ada"]}
    config = configure(server={"allowed_callers": allowed, "default_deadline": "1s"}, DEFAULT_DEADLINE="2s")
    assert config.server.allowed_callers == allowed
    assert (config.server.port, config.server.default_deadline) == (0, 2)
    assert configure(server={"port": 7}, metrics={"enabled": True}).server.port == 7
    with pytest.raises(grpc_common.ConfigError, match=r"server\.hosts: unknown key; did you mean host\?"):
        configure(server={"hosts": "::"})


def test_settings_of_a_file(tmp_path):
    """A test may take the service's own file, but for the port; sections and variables are over it."""
    file = tmp_path / "config.yaml"
    file.write_text("server: {port: 50051, default_deadline: 1s, propagated_metadata: [x-request-id]}")
    config = configure(
        grpc_common.ServerConfig, file, server={"reflection": False}, DEFAULT_DEADLINE="2s"
    ).server
    assert (config.port, config.default_deadline, config.reflection) == (0, 2, False)
    assert config.propagated_metadata == ["x-request-id"]


async def test_unix_socket(serve):
    """The channel is over a Unix socket, whatever folder pytest has."""

    async def peer(_request, context):
        return context.peer().encode()

    assert (await say(await serve(peer, add_echo, unix_socket=True))).startswith(b"unix:")
    assert (await say(await serve(peer, add_echo))).startswith(b"ipv4:127.0.0.1:")


async def who(_request, _context) -> bytes:
    """Answer with the names of the caller."""
    return ", ".join(grpc_common.current_call().identity.names).encode()


@pytest.mark.parametrize("unix_socket", [False, True])
@pytest.mark.parametrize(
    ("san", "name"),
    [
        ("client.example.com", "DNS:client.example.com"),
        ("spiffe://test/client", "URI:spiffe://test/client"),
        ("10.0.0.7", "IP:10.0.0.7"),
        ("ada@example.com", "email:ada@example.com"),
    ],
)
async def test_client_certificate(serve, san, name, unix_socket):
    """One option turns mutual TLS on, with certificates that are made for it: the server knows its caller."""
    config = configure(server={"allowed_callers": {"*": [san]}})
    channel = await serve(who, add_echo, config=config, client_certificate=san, unix_socket=unix_socket)
    assert await say(channel) == name.encode()


async def test_caller_of_mutual_tls_alone(serve):
    """A handler knows the caller by the certificate, though nothing says who may call."""
    assert await say(await serve(who, add_echo, client_certificate="a.example.com")) == b"DNS:a.example.com"


async def test_channel_of_ones_own_with_a_client_certificate(serve):
    """It gets the certificates beside what the test wants of it."""
    recorded = RecordedCalls()
    opened = functools.partial(grpc_common.channel, observers=[recorded])
    channel = await serve(echo, add_echo, client_certificate="a.example.com", channel=opened)
    await say(channel)
    assert [call.method.path for call in await recorded.until_ended()] == ["/test.Echo/Say"]


async def test_no_client_certificate(serve):
    """A server with client_certificate has no call from clients without."""

    @contextlib.asynccontextmanager
    async def without(target, *, tls):
        credentials = grpc.ssl_channel_credentials(tls.directory.joinpath("ca.crt").read_bytes())
        async with grpc.aio.secure_channel(target, credentials) as channel:
            yield channel

    channel = await serve(who, add_echo, client_certificate="a.example.com", channel=without)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_wrong_client_certificate(serve):
    """What can't be a SAN is told with what can."""
    with pytest.raises(ValueError, match=r"'\*\.com' can't be in a certificate; write a DNS name, a URI"):
        await serve(who, add_echo, client_certificate="*.com")


@pytest.mark.parametrize("made", [str, lambda name: grpc_common.Caller(name, frozenset({f"subject:{name}"}))])
async def test_caller(serve, made):
    """Every call has the caller that the test says, who may do what allowed_callers says and no more."""
    config = configure(server={"allowed_callers": {"*": ["subject:ada"]}})
    for name, code in (("ada", grpc.StatusCode.OK), ("bob", grpc.StatusCode.PERMISSION_DENIED)):
        channel = await serve(who, add_echo, config=config, caller=made(name))
        assert await channel.unary_unary("/test.Echo/Say")(b"", timeout=10).code() is code


async def test_caller_is_not_the_configurations(serve):
    """A configuration can be used for several servers: what the kit adds to it is for one alone."""
    config = configure()
    await serve(echo, add_echo, config=config, unix_socket=True, client_certificate="a.example.com")
    assert config == configure()


@pytest.mark.parametrize("options", [{}, {"client_certificate": "a.example.com"}], ids=["plaintext", "tls"])
async def test_proxy_of_the_machine(serve, monkeypatch, options):
    """A developer's proxy is not asked for a server on loopback."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_grpc_proxy", "example.com")  # goes before no_proxy, which may name loopback
    assert await say(await serve(echo, add_echo, **options)) == b"x"


async def test_server_that_cannot_start(serve):
    """What keeps a server from starting is raised in the test."""

    def add_nothing(_servicer, _server):
        pass

    with pytest.raises(grpc_common.StartError, match="registers no service"):
        await serve(None, add_nothing)


async def test_recorded_calls_have_method_metadata_and_code(serve):
    """A test sees what a server and a channel were called with, and how that ended."""
    ours, theirs = RecordedCalls(), RecordedCalls()
    opened = functools.partial(grpc_common.channel, observers=[theirs])
    channel = await serve(echo, add_echo, observers=[ours], channel=opened)
    await channel.unary_unary("/test.Echo/Say")(b"", metadata=[("request-id", "7")])
    for recorded in (ours, theirs):
        (call,) = await recorded.until_ended()
        assert recorded.calls == [call]
        assert (call.method.path, call.code) == ("/test.Echo/Say", grpc.StatusCode.OK)
        assert ("request-id", "7") in call.metadata


async def test_recorded_calls_that_do_not_come(monkeypatch):
    """Who waits for more calls than there are is told how many there were."""
    monkeypatch.setattr(recorded_calls, "_PATIENCE", 0.01)
    with pytest.raises(TimeoutError, match=r"^0 of 0 calls have ended within 0\.01 s; the test waits for 2$"):
        await RecordedCalls().until_ended(2)


FAILING = """
import asyncio
from pathlib import Path
import grpc
import pytest

pytest_plugins = ["grpc_common.testing.pytest_plugin"]
targets = []

def add(servicer, server):
    method = grpc.unary_unary_rpc_method_handler(servicer)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Say": method})])

@pytest.mark.asyncio
async def test_fails(serve):
    entered = asyncio.Event()
    async def hang(_request, context):
        entered.set()
        await asyncio.Event().wait()
    def opened(target):
        targets.append(target)
        return grpc.aio.insecure_channel(target)
    channel = await serve(hang, add, channel=opened)
    await serve(hang, add, channel=opened, unix_socket=True)
    asyncio.ensure_future(channel.unary_unary("/test.Echo/Say")(b""))
    await entered.wait()
    assert False, "as the test wants"

@pytest.mark.asyncio
async def test_that_cannot_start(serve):
    await serve(None, lambda _servicer, _server: None)

@pytest.mark.asyncio
async def test_gives_up(serve):
    def opened(target):
        targets.append(target)
        return grpc.aio.insecure_channel(target)
    async with asyncio.timeout(0):
        await serve(None, add, channel=opened)

@pytest.mark.asyncio
async def test_nothing_listens():
    (host, socket, *rest) = targets
    for target in (host, *rest):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(target.rpartition(":")[2]))
    assert not Path(socket.removeprefix("unix:")).parent.exists()
"""


TESTS_LOOP = "-oasyncio_default_test_loop_scope=session"
# The end of a loop stops what runs in it; in one loop for all tests only the fixture does.
ONE_LOOP = [TESTS_LOOP, "-oasyncio_default_fixture_loop_scope=session"]


def run_pytest(folder, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a process of their own."""
    file = folder / "its_test.py"
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider", "-v", *options, file]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


MODES = [["--asyncio-mode=strict"], ["--asyncio-mode=auto"], ONE_LOOP]


@pytest.mark.parametrize("options", MODES, ids=" ".join)
def test_failed_test_leaves_no_server(tmp_path, options):
    """A test that fails, in a call or a start, has its servers stopped, however pytest-asyncio is set."""
    result = run_pytest(tmp_path, FAILING, *options)
    assert "as the test wants" in result.stdout
    assert "3 failed, 1 passed in" in result.stdout, result.stdout
    told = r">       await serve\(None, lambda .*\)\nE       grpc_common\.core\.errors\.StartError: <lambda> "
    assert re.search(told, result.stdout), result.stdout


def test_other_loop_than_the_fixtures(tmp_path):
    """Where the fixture could not stop a server, none starts, and what to set is told."""
    result = run_pytest(tmp_path, FAILING, TESTS_LOOP, "-k", "cannot_start")
    assert "the fixture serve has another event loop than the test; set asyncio_default_" in result.stdout
    assert "= 1 failed, 3 deselected in" in result.stdout, result.stdout


def test_plugin_costs_little():
    """A test without a server does not import gRPC's server for the plugin."""
    code = "import grpc_common.testing.pytest_plugin, sys; print('grpc_common.server.server' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "False\n"
