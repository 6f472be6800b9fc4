"""The extension points of who calls that the README's table lists; see extension_calls_test.py."""

from contextlib import asynccontextmanager
from functools import partial

import grpc
import structlog

import grpc_common
from grpc_common import Server, ServerConfig, channel, current_call
from grpc_common.observe.logs import _add_call
from grpc_common.testing import configure
from grpc_common.testing.tokens import TokenIssuer

pytest_plugins = ["grpc_common.testing.pytest_plugin"]

CODE = grpc.StatusCode
KEYS = {"k1": "ada"}


async def echo(request, _context):
    """Answer with the request."""
    return request


def add(handler, server):
    """Register test.Echo."""
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


@asynccontextmanager
async def serving(server, handler=echo, *, open_channel=grpc.aio.insecure_channel):
    """Serve `handler`; yield the method."""
    server.add(handler, add)
    async with server.serving() as port, open_channel(f"127.0.0.1:{port}") as opened:
        yield opened.unary_unary("/test.Echo/Call")


async def code(method, *metadata):
    """Return how a call ends."""
    return await method(b"hello", timeout=10, metadata=metadata).code()


TOKENS = """
server:
# region: JWT with rotating keys, and who may call
  jwt:
    jwks: {folder}/keys.json
    issuer: https://issuer.test
    audience: test.Echo
  allowed_callers:
    "*": []
    /test.Echo/*: ["subject:ada", "scope:echo"]
# endregion
"""


def of_token(token):
    """Return the metadata that has a token."""
    return "authorization", f"Bearer {token}"


async def test_tokens(tmp_path):
    """Who is on the list may call, by subject or scope, and so after the issuer's keys have changed."""
    issuer = TokenIssuer()
    (tmp_path / "keys.json").write_bytes(issuer.jwks())
    (tmp_path / "config.yaml").write_text(TOKENS.format(folder=tmp_path))
    server = Server(configure(ServerConfig, tmp_path / "config.yaml"))
    async with serving(server) as method:
        assert await code(method) is CODE.UNAUTHENTICATED
        assert await code(method, of_token(issuer.token("eve"))) is CODE.PERMISSION_DENIED
        assert await code(method, of_token(issuer.token("eve", scope="echo"))) is CODE.OK
        issuer.rotate()
        (tmp_path / "keys.json").write_bytes(issuer.jwks())
        assert await code(method, of_token(issuer.token("ada"))) is CODE.OK


# region: authentication of one's own
class ApiKeys:
    """Knows callers by keys."""

    async def authenticate(self, call: grpc_common.Call) -> grpc_common.Caller | None:
        """Return whose key it is."""
        key = dict(call.metadata).get("api-key")
        if key is None:
            return None
        if key not in KEYS:
            raise grpc_common.StatusError(CODE.PERMISSION_DENIED, "no such key")
        return grpc_common.Caller(KEYS[key], frozenset({f"subject:{KEYS[key]}"}))


# endregion
async def test_authentication_of_ones_own():
    """The handler knows who calls."""
    callers = []

    async def handler(request, _context):
        # region: authentication of one's own
        caller = current_call().identity
        # endregion
        callers.append(caller and caller.name)
        return request

    server = Server(
        configure(),
        # region: authentication of one's own
        authenticators=[ApiKeys()],
        # endregion
    )
    async with serving(server, handler) as method:
        assert await code(method, ("api-key", "wrong")) is CODE.PERMISSION_DENIED
        assert [await code(method), await code(method, ("api-key", "k1"))] == [CODE.OK, CODE.OK]
    assert callers == [None, "ada"]


async def test_token_of_a_client(tmp_path):
    """Each call has the token that the file holds then."""
    path, seen = tmp_path / "token", []

    async def handler(request, context):
        seen.append(dict(context.invocation_metadata())["authorization"])
        return request

    opening = partial(
        channel,
        # region: token of a client, from a file that rotates
        interceptors=[grpc_common.BearerToken.from_file(path, allow_plaintext=True)],
        # endregion
    )
    async with serving(Server(configure()), handler, open_channel=opening) as method:
        for token in ("one", "another"):
            path.write_text(token)
            assert await code(method) is CODE.OK
    assert seen == ["Bearer one", "Bearer another"]


async def test_context_of_a_call(monkeypatch):
    """What a handler calls, however deep, logs who calls what, and knows the time that is left."""
    lines = structlog.testing.LogCapture()

    async def deep():
        # region: context of a call: logger, caller, trace id, remaining deadline
        log = structlog.get_logger()
        log.info("looks up", seconds_left=current_call().time_remaining())
        # endregion

    async def handler(request, _context):
        await deep()
        return request

    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    config = configure(TRACING_ENABLED="true", TRACING_SAMPLING_RATE="1", TRACING_SERVICE_NAME="test")
    async with serving(Server(config, authenticators=[ApiKeys()]), handler) as method:
        structlog.configure(processors=[_add_call, lines])
        try:
            await code(method, ("api-key", "k1"))
        finally:
            structlog.reset_defaults()
    [line] = [entry for entry in lines.entries if entry["event"] == "looks up"]
    assert (line["method"], line["caller"], len(line["trace_id"])) == ("/test.Echo/Call", "ada", 32)
    assert 5 < line["seconds_left"] < 10.1


async def test_test_kit(serve):
    """A servicer is called over mutual TLS, as whom the test says."""
    callers = []

    async def handler(request, _context):
        callers.append(current_call().identity.name)
        return request

    # region: test of a servicer, with certificates and a fake caller
    opened = await serve(handler, add, client_certificate="orders.test", caller="ada")
    # endregion
    assert await code(opened.unary_unary("/test.Echo/Call")) is CODE.OK
    assert callers == ["DNS:orders.test, ada"]
