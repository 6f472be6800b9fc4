import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from structlog.testing import capture_logs

import grpc_common
from grpc_common.testing import configure

ECHO = "/test.Echo/Read"
CODE = grpc.StatusCode


class ApiKeys:
    """Know callers by the metadata `api-key`."""

    async def authenticate(self, call):
        """Return the caller of a key."""
        key = dict(call.metadata).get("api-key")
        if key is None:
            return None
        if key == "bug":
            raise RuntimeError("secret-text")
        if key == "text":
            return "ada"
        if key == "late":
            raise grpc_common.StatusError(CODE.RESOURCE_EXHAUSTED, "too many")
        if not key.startswith("key-of-"):
            raise grpc_common.StatusError(CODE.PERMISSION_DENIED, "the API key is unknown")
        name = key.removeprefix("key-of-")
        return grpc_common.Caller(f"{name}\x1b", frozenset({f"subject:{name}"}))


async def echo(request: bytes, _context) -> bytes:
    """Answer with the request."""
    return request


def add(_servicer, server) -> None:
    """Register test.Echo."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(echo) for name in ("Read", "Open")}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


def server_of(authenticators, **section):
    """Return a server."""
    server = grpc_common.Server(configure(server=section), authenticators=authenticators)
    server.add(None, add)
    return server


@asynccontextmanager
async def serving(*authenticators, **section):
    """Serve test.Echo; yield a channel."""
    server = server_of(authenticators, **section)
    async with server.serving() as port, grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        yield channel


async def outcome(channel, key=None, method=ECHO):
    """Return code and text of a call."""
    call = channel.unary_unary(method)(b"", metadata=[("api-key", key)] if key else [])
    return await call.code(), await call.details()


async def test_scheme_of_ones_own():
    """What an authenticator says of a caller decides, is in the access line, and is printable there."""
    with capture_logs() as logs:
        async with serving(ApiKeys(), allowed_callers={ECHO: ["subject:ada"]}) as channel:
            assert (await outcome(channel, "key-of-ada"))[0] is CODE.OK
            assert (await outcome(channel, "key-of-bob")) == (
                CODE.PERMISSION_DENIED,
                rf"{ECHO} is not allowed for bob\x1b",
            )
            assert (await outcome(channel))[0] is CODE.UNAUTHENTICATED
            assert (await outcome(channel, method="/test.Echo/Open"))[0] is CODE.OK
            # A wrong credential is refused on open methods too.
            assert await outcome(channel, "x", "/test.Echo/Open") == (
                CODE.PERMISSION_DENIED,
                "the API key is unknown",
            )
            assert await outcome(channel, "late") == (CODE.RESOURCE_EXHAUSTED, "too many")
    assert next(line["caller"] for line in logs if line["event"] == "call") == r"ada\x1b"


@pytest.mark.parametrize("key", ["bug", "text"])
async def test_bug_of_an_authenticator(key):
    """Another exception, or something that is no Caller, lets nobody in, and only the log tells why."""
    with capture_logs() as logs:
        async with serving(ApiKeys()) as channel:
            code, text = await outcome(channel, key)
    assert code is CODE.INTERNAL
    assert "secret" not in text
    assert "unexpected exception" in [line["event"] for line in logs]


async def test_first_that_knows_the_caller():
    """Authenticators are asked in their order until one knows the caller."""

    class Nobody:
        async def authenticate(self, _call):
            return None

    class Ghost:
        async def authenticate(self, _call):
            return grpc_common.Caller("ghost", frozenset({"scope:any"}))

    with capture_logs() as logs:
        async with serving(Nobody(), ApiKeys(), Ghost()) as channel:
            await outcome(channel, "key-of-ada")
            await outcome(channel)
    assert [line["caller"] for line in logs if line["event"] == "call"] == [r"ada\x1b", "ghost"]


class Waiting:
    """Knows everyone, once it may."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = asyncio.Queue()

    async def authenticate(self, _call):
        """Return a caller when it may."""
        self.asked.put_nowait(None)
        await self.go.wait()
        return grpc_common.Caller("ada")


async def test_callers_that_leave_while_they_are_asked_about():
    """A deadline or a cancellation ends the call at once, and others go on."""
    waiting = Waiting()
    async with serving(waiting) as channel:
        call = channel.unary_unary(ECHO)(b"", timeout=0.3)
        await waiting.asked.get()
        assert await call.code() is CODE.DEADLINE_EXCEEDED
        call = channel.unary_unary(ECHO)(b"")
        await waiting.asked.get()
        call.cancel()
        waiting.go.set()
        assert (await outcome(channel))[0] is CODE.OK


async def test_many_that_wait():
    """No more than 1000 calls wait for an authenticator; others are refused at once."""
    waiting = Waiting()
    async with serving(waiting, max_concurrent_streams=2000) as channel:
        calls = [channel.unary_unary(ECHO)(b"", timeout=60) for _ in range(1000)]
        for _ in calls:
            await waiting.asked.get()
        assert await outcome(channel) == (
            CODE.RESOURCE_EXHAUSTED,
            "the server is busy with the credentials of 1000 calls",
        )
        waiting.go.set()
        assert {await call.code() for call in calls} == {CODE.OK}


TOKENS = {"jwks": "keys.json", "issuer": "i", "audience": "a"}


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({}, "server.allowed_callers needs a way to know callers: "),
        (
            {"jwt": TOKENS, "allowed_callers": {"*": ["web.test"]}},
            "'web.test' is a SAN, which needs server.tls.",
        ),
    ],
)
def test_callers_that_nothing_can_know(section, text):
    """A server whose list could never let anyone in does not start; an authenticator may know anything."""
    section = {"allowed_callers": {"*": ["subject:ada"]}} | section
    with pytest.raises(grpc_common.StartError, match=text):
        server_of([], **section)
    server_of([ApiKeys()], **section)
