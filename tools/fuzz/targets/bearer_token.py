"""Bearer tokens: as a client reads them from a file, and as a server gets them from strangers."""

import asyncio
import base64
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import grpc
from jwt.algorithms import ECAlgorithm

from grpc_common.client.bearer import BearerToken
from grpc_common.config.sections import JwtConfig
from grpc_common.core.errors import StatusError
from grpc_common.server.jwt import JwtAuthenticator
from grpc_common.testing.tokens import AUDIENCE, ISSUER, TokenIssuer
from tools.fuzz.properties import check_hidden, check_shown

_folder = TemporaryDirectory()
_TOKEN, _JWKS = Path(_folder.name) / "token", Path(_folder.name) / "jwks.json"
_loop = asyncio.new_event_loop()
_issuer = TokenIssuer()
_JWKS.write_bytes(_issuer.jwks())
_signing = ECAlgorithm(ECAlgorithm.SHA256)
_authenticator = JwtAuthenticator(JwtConfig(issuer=ISSUER, audience=AUDIENCE, jwks=str(_JWKS)))
_loop.run_until_complete(_authenticator._keys.start())  # noqa: SLF001 (running() would follow the file)


def fuzz(data: bytes) -> None:
    """A token tells a caller, or is refused unseen; two lines are header and claims, without signature."""
    header, newline, claims = data.partition(b"\n")
    text = signed(header, claims) if newline else data.decode("utf-8", "surrogateescape")
    _loop.run_until_complete(check_server(text))
    _loop.run_until_complete(check_client(data, text))


def signed(header: bytes, claims: bytes) -> str:
    """Return the token of an issuer that has lost its mind."""
    content = base64url(header) + b"." + base64url(claims)
    return (content + b"." + base64url(_signing.sign(content, _issuer.key))).decode()


def base64url(content: bytes) -> bytes:
    """Return base64 as tokens have it."""
    return base64.urlsafe_b64encode(content).rstrip(b"=")


async def check_server(token: str) -> None:
    """Look at what a server makes of it."""
    call: Any = SimpleNamespace(metadata=[("authorization", f"Bearer {token}")])
    try:
        caller = await _authenticator.authenticate(call)
    except StatusError as error:
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        check_shown(error.message, 300)
        check_hidden(error.message, token)
    else:
        assert caller
        check_shown(caller.name, 1300)
        assert "\n" not in caller.name
        assert await _authenticator.authenticate(call) == caller


async def check_client(data: bytes, token: str) -> None:
    """Look at what a client sends of it: one word, or nothing."""
    _TOKEN.write_bytes(data)

    async def fetch() -> str:
        return token

    for bearer in (BearerToken.from_file(_TOKEN), BearerToken(fetch)):
        call: Any = SimpleNamespace(metadata=[])
        try:
            async with bearer(call):
                [(name, value)] = call.metadata
        except StatusError as error:
            assert error.code is grpc.StatusCode.UNAUTHENTICATED
            check_shown(error.message, 300)
            check_hidden(error.message, *token.split())
        else:
            assert name == "authorization"
            assert value.isascii()
            assert value.isprintable()
            assert len(value.split(" ")) == 2  # noqa: PLR2004 (the scheme and the token)
