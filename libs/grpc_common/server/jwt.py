"""Callers by their bearer tokens: JWTs (RFC 7519) in the metadata `authorization`."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from types import MappingProxyType
from typing import Any, NoReturn

import grpc
import jwt

from grpc_common.config.sections import JwtConfig
from grpc_common.core.background import supervised
from grpc_common.core.caller import Caller
from grpc_common.core.calls import Call, Metadata
from grpc_common.core.errors import StatusError
from grpc_common.server.identity import shown_name
from grpc_common.server.jwks import Keys
from grpc_common.server.public_keys import KeySet

_LONGEST = 16 * 2**10
"""Characters of a token; those of real issuers have up to 8000."""

_TYPES = {"jwt", "at+jwt", "application/at+jwt", "application/jwt"}
"""RFC 9068 for access tokens; what is signed for another use (`logout+jwt`, `dpop+jwt`) is none."""

_CLAIMS = ["exp", "iss", "aud", "sub"]

_TOKENS = 1024
"""Tokens that are kept once verified: 160 to 200 µs to verify one, 2 to look it up."""

_REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "has expired",
    jwt.ImmatureSignatureError: "is not valid yet",
    jwt.InvalidIssuerError: "is of another issuer",
    jwt.InvalidAudienceError: "is for another audience",
    jwt.MissingRequiredClaimError: f"lacks one of {', '.join(_CLAIMS)}",
    jwt.InvalidSignatureError: "has a wrong signature",
}


class JwtAuthenticator:
    """Knows callers by the tokens of one issuer (`Authenticator`)."""

    def __init__(self, config: JwtConfig) -> None:
        self._keys = Keys(config.jwks, config.algorithms)
        self._algorithms = frozenset(config.algorithms)
        self._leeway = config.leeway
        self._decode = partial(
            jwt.decode,
            issuer=config.issuer,
            audience=config.audience,
            leeway=config.leeway,
            options={"require": _CLAIMS},
        )
        self._known: dict[bytes, tuple[Caller, float]] = {}
        self._known_by: KeySet = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read the keys, and follow them until the end of the block.

        Raises:
            StartError: the file with the keys can't be used.

        """
        await self._keys.start()
        async with supervised("keys of tokens", self._keys.follow):
            yield

    async def authenticate(self, call: Call) -> Caller | None:
        """Return the caller of a token, None if there is no token.

        Raises:
            StatusError: PERMISSION_DENIED, the token is wrong; UNAVAILABLE, there are no keys to tell.

        """
        token = _bearer_token(call.metadata)
        if token is None:
            return None
        digest = sha256(token.encode()).digest()  # what is kept is of no use to whoever reads the memory
        return self._remembered(digest) or self._verified(token, await self._keys_of(token), digest)

    def _remembered(self, digest: bytes) -> Caller | None:
        if self._known_by is not self._keys.current:  # a key may be revoked
            self._known_by = self._keys.current
            self._known.clear()
        caller, until = self._known.get(digest, (None, 0.0))
        return caller if time.time() < until else None

    async def _keys_of(self, token: str) -> Sequence[jwt.PyJWK]:
        key_id, algorithm = self._header(token)
        keys = self._keys.find(key_id, algorithm)
        if not keys:
            await self._keys.look_again()
            keys = self._keys.find(key_id, algorithm)
        if not keys and not self._keys.current:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, "the keys of bearer tokens are not known yet")
        return keys or _refuse("is signed with an unknown key")

    def _header(self, token: str) -> tuple[str | None, str]:
        """Return the id of a token's key, and its algorithm."""
        try:
            header = jwt.get_unverified_header(token)
        except Exception:  # noqa: BLE001 (of whatever kind the nonsense is)
            _refuse("can't be read")
        key_id, algorithm, kind = header.get("kid"), header.get("alg"), header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            _refuse("is of another type")
        if "crit" in header:
            _refuse("has critical headers, none of which is known")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            _refuse(f"is not signed with {' or '.join(sorted(self._algorithms))}")
        return key_id, algorithm

    def _verified(self, token: str, keys: Sequence[jwt.PyJWK], digest: bytes) -> Caller:
        try:
            claims = self._claims(token, keys)
            caller = _caller(claims)
            until = int(claims["exp"]) + self._leeway
        except StatusError:
            raise
        except Exception as error:  # noqa: BLE001 (of whatever kind the nonsense is)
            _refuse(_REASONS.get(type(error), "can't be read"))
        if len(self._known) >= _TOKENS:
            del self._known[next(iter(self._known))]
        self._known[digest] = caller, until
        return caller

    def _claims(self, token: str, keys: Sequence[jwt.PyJWK]) -> dict[str, Any]:
        """Return what a token says that one of the keys has signed."""
        for key in keys[:-1]:
            with suppress(jwt.InvalidSignatureError):
                return self._decode(token, key, algorithms=[key.algorithm_name])
        return self._decode(token, keys[-1], algorithms=[keys[-1].algorithm_name])


def _bearer_token(metadata: Metadata) -> str | None:
    values = [value for key, value in metadata if key == "authorization"]
    tokens = [value for value in values if value[:7].lower() in {"bearer ", b"bearer "}]
    if not tokens:
        return None
    if len(values) > 1:
        _refuse("is not the only credential in authorization")
    token = tokens[0][7:]
    if not isinstance(token, str) or not token.isascii():
        _refuse("can't be read")
    if len(token) > _LONGEST:
        _refuse(f"has more than {_LONGEST} characters")
    return token.strip()


def _caller(claims: Mapping[str, Any]) -> Caller:
    subject = f"subject:{claims['sub']}"
    scopes = {f"scope:{scope}" for claim in ("scope", "scp") for scope in _scopes(claims.get(claim))}
    return Caller(shown_name(subject), frozenset({subject, *scopes}), MappingProxyType(dict(claims)))


def _scopes(value: Any) -> list[str]:
    """Return scopes that are given as text with spaces (RFC 8693) or as a list."""
    scopes = value.split() if isinstance(value, str) else value or []
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        _refuse("has scopes that are neither text nor a list of texts")
    return scopes


def _refuse(why: str) -> NoReturn:
    raise StatusError(grpc.StatusCode.PERMISSION_DENIED, f"the bearer token {why}")
