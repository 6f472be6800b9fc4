import re
from contextlib import asynccontextmanager

import grpc
import pytest
import trustme

import grpc_common
from grpc_common.testing import configure
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.tokens import AUDIENCE, ISSUER, TokenIssuer

ECHO = "/test.Echo/Read"
CODE = grpc.StatusCode
ALLOWED = {"*": [], ECHO: ["web.test", "subject:ada"]}


async def echo(_request: bytes, _context) -> bytes:
    """Answer with what the call has of its caller."""
    return (grpc_common.current_call().caller or "nobody").encode()


def add(_servicer, server) -> None:
    """Register test.Echo."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(echo) for name in ("Read", "Open")}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


@pytest.fixture
def issuer():
    """Return an issuer of tokens."""
    return TokenIssuer()


@pytest.fixture
def config(tmp_path, issuer):
    """Return what makes the configuration of a server that knows a proxy."""
    keys = tmp_path / "jwks.json"
    keys.write_bytes(issuer.jwks())

    def make(**section):
        jwt = {"jwks": str(keys), "issuer": ISSUER, "audience": AUDIENCE}
        return configure(server={"jwt": jwt, "allowed_callers": ALLOWED, "proxies": ["Edge.test"]} | section)

    return make


@pytest.fixture
def called_with(tmp_path, config):
    """Return what opens a channel with a certificate for some names."""

    @asynccontextmanager
    async def open_channel(*sans, **section):
        ca = trustme.CA()
        directory = CertificateDirectory(tmp_path / "server", ca).path
        tls = {"directory": directory, "require_client_certificate": True}
        server = grpc_common.Server(config(tls=tls, **section))
        server.add(None, add)
        client = grpc_common.ClientTLS(CertificateDirectory(tmp_path / "client", ca, *sans).path)
        async with server.serving() as port, grpc_common.channel(f"localhost:{port}", tls=client) as channel:
            yield channel

    return open_channel


async def outcome(channel, token=None, method=ECHO):
    """Return code and text of a call."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    call = channel.unary_unary(method)(b"", metadata=metadata, timeout=20)
    return await call.code(), await call.details()


@pytest.mark.parametrize("sans", [["edge.test"], ["web.test", "EDGE.test"]], ids=str)
async def test_a_proxy_is_nobody(called_with, issuer, sans):
    """Who comes through a proxy is known by the token alone, whatever else the proxy's certificate says."""
    async with called_with(*sans) as channel:
        assert (await outcome(channel))[0] is CODE.UNAUTHENTICATED
        assert (await outcome(channel, method="/test.Echo/Open"))[0] is CODE.UNAUTHENTICATED
        assert (await outcome(channel, "wrong"))[0] is CODE.PERMISSION_DENIED
        refused = CODE.PERMISSION_DENIED, f"{ECHO} is not allowed for subject:bob"
        assert await outcome(channel, issuer.token("bob")) == refused
        metadata = [("authorization", f"Bearer {issuer.token()}")]
        assert await channel.unary_unary(ECHO)(b"", metadata=metadata) == b"subject:ada"


async def test_a_colleague_goes_on(called_with):
    """A certificate that is no proxy's is its owner's."""
    async with called_with("web.test") as channel:
        assert await channel.unary_unary(ECHO)(b"") == b"DNS:web.test"


async def test_what_is_open_is_open_to_proxies(called_with):
    """A method without a list takes calls through a proxy too: `"*": []` closes it."""
    async with called_with("edge.test", allowed_callers={}) as channel:
        assert (await outcome(channel))[0] is CODE.OK


NEEDS = "server.proxies are SANs, which need server.tls.require_client_certificate: true"
NO_CALLER = "server.allowed_callers: 'Edge.test' is one of server.proxies, and so never a caller"
MUTUAL = {"directory": "/nowhere", "require_client_certificate": True}


@pytest.mark.parametrize(
    ("section", "text"),
    [({}, NEEDS), ({"tls": MUTUAL, "allowed_callers": {ECHO: ["EDGE.test"]}}, NO_CALLER)],
)
def test_proxies_that_mean_nothing(config, section, text):
    """A server does not start with a proxy that it can't know, or that it would let call."""
    with pytest.raises(grpc_common.StartError, match=re.escape(text)):
        grpc_common.Server(config(**section))


@pytest.mark.parametrize("name", ["*.test", "subject:ada", "a b"])
def test_a_proxy_that_is_no_name(config, name):
    """A proxy has one whole name, as callers have."""
    with pytest.raises(grpc_common.ConfigError, match=r"server\.proxies.*one whole SAN"):
        config(proxies=[name])
