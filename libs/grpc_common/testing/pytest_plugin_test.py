"""The fixture `serve` serves what a test gives it, and stops it when the test ends, however it ends."""

import asyncio
import os
import subprocess
import sys

import grpc
import pytest

import grpc_common
from grpc_common.testing import RecordedCalls, configure

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


def test_settings_of_a_file(tmp_path):
    """A test may take the service's own file, but for the port, over which its variables are."""
    file = tmp_path / "config.yaml"
    file.write_text("server: {port: 50051, default_deadline: 1s, propagated_metadata: [x-request-id]}")
    config = configure(grpc_common.ServerConfig, file, DEFAULT_DEADLINE="2s").server
    assert (config.port, config.default_deadline, config.propagated_metadata) == (0, 2, ["x-request-id"])


async def test_client_certificate(serve):
    """The server knows its caller by a certificate, and refuses who has none."""

    async def who(_request, _context):
        return str(grpc_common.current_call().identity).encode()

    allowed = {"*": ["client.example.com"]}
    config = configure()
    config = config.model_copy(
        update={"server": config.server.model_copy(update={"allowed_callers": allowed})}
    )
    channel = await serve(who, add_echo, config=config, client_certificate="client.example.com")
    assert b"client.example.com" in await say(channel)
    stranger = await serve(who, add_echo, config=config, client_certificate="stranger.example.com")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(stranger)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_unix_socket(serve):
    """A server listens on a Unix socket wherever the test's folder is, and is known by it."""

    async def peer(_request, context):
        return context.peer().encode()

    assert (await say(await serve(peer, add_echo, unix_socket=True))).startswith(b"unix:")


@pytest.mark.parametrize("caller", ["ada", grpc_common.Caller("ada", frozenset({"subject:ada"}))])
async def test_caller(serve, caller):
    """Every call is that caller's, for the handler and for allowed_callers, without a credential."""

    async def who(_request, _context):
        return grpc_common.current_call().identity.name.encode()

    config = configure()
    allowed = {"allowed_callers": {"*": ["subject:ada"]}}
    config = config.model_copy(update={"server": config.server.model_copy(update=allowed)})
    assert await say(await serve(who, add_echo, config=config, caller=caller)) == b"ada"
    other = await serve(who, add_echo, config=config, caller="bob")
    with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
        await say(other)


async def test_server_that_cannot_start(serve):
    """What keeps a server from starting is raised in the test."""

    def add_nothing(_servicer, _server):
        pass

    with pytest.raises(grpc_common.StartError, match="registers no service"):
        await serve(None, add_nothing)


async def test_recorded_calls_have_method_metadata_and_code(serve):
    """A test sees what the server was called with, and how that ended."""
    recorded = RecordedCalls()
    channel = await serve(echo, add_echo, observers=[recorded])
    await channel.unary_unary("/test.Echo/Say")(b"", metadata=[("request-id", "7")])
    (call,) = recorded.calls
    assert (call.method.path, call.code) == ("/test.Echo/Say", grpc.StatusCode.OK)
    assert ("request-id", "7") in call.metadata


FAILING = """
import asyncio
import grpc
import pytest

pytest_plugins = ["grpc_common.testing.pytest_plugin"]
ports = []

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
        ports.append(int(target.rpartition(":")[2]))
        return grpc.aio.insecure_channel(target)
    channel = await serve(hang, add, channel=opened)
    asyncio.ensure_future(channel.unary_unary("/test.Echo/Say")(b""))
    await entered.wait()
    assert False, "as the test wants"

@pytest.mark.asyncio
async def test_port_is_closed():
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", ports[0])
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_failed_test_leaves_no_server(tmp_path, mode):
    """A test that fails in the middle of a call has its server stopped, in both modes of pytest-asyncio."""
    file = tmp_path / "failing_test.py"
    file.write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-pno:cacheprovider", f"--asyncio-mode={mode}", "-v", file]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert "as the test wants" in result.stdout
    assert "1 failed, 1 passed" in result.stdout, result.stdout


def test_plugin_costs_little():
    """A test without a server does not import gRPC's server for the plugin."""
    code = "import grpc_common.testing.pytest_plugin, sys; print('grpc_common.server.server' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "False\n"
