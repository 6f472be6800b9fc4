"""Who calls, and whether they may: by certificate, by token, or by a scheme of one's own."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import grpc

from grpc_common.config.callers import parse_caller
from grpc_common.config.sections import JwtConfig, ServerSection
from grpc_common.core.caller import Caller
from grpc_common.core.calls import Call
from grpc_common.core.errors import StartError, StatusError
from grpc_common.server.admission import pushback
from grpc_common.server.authorization import Authorizer
from grpc_common.server.call import ServerCall
from grpc_common.server.identity import identity

if TYPE_CHECKING:
    from grpc_common.server.jwt import JwtAuthenticator

_TIMEOUT = 10.0
"""Seconds that authentication may take: the call's own deadline begins later."""

_MOST_AT_A_TIME = 1000
"""Calls that are authenticated at a time; they have no place among max_concurrent_calls yet."""

_NEEDED = (
    "server.jwt needs PyJWT: with Bazel depend on //libs/grpc_common:jwt, "
    "with pip install grpc-on-kubernetes-common[jwt]"
)


class Authenticator(Protocol):
    """Tells who calls, in a way of one's own: `Server(config, authenticators=[...])`."""

    async def authenticate(self, call: Call) -> Caller | None:
        """Return who has made the call, by its metadata or peer; None if it has no credential of this kind.

        Raises:
            StatusError: the credential is wrong; PERMISSION_DENIED is the code for it. Any other exception
                is a bug, logged, and INTERNAL for the caller.

        """


class Access:
    """Checks the callers of one server.

    A certificate, server.jwt and the authenticators are asked in this order. Of the last two the first that
    knows the caller is believed; what the certificate says is true as well, unless it is a proxy's.
    """

    def __init__(self, config: ServerSection, authenticators: Sequence[Authenticator]) -> None:
        self._certificates = config.tls.require_client_certificate
        self._proxies = frozenset(map(parse_caller, config.proxies))
        self._jwt = _jwt_authenticator(config.jwt) if config.jwt else None
        self._authenticators = (*([self._jwt] if self._jwt else []), *authenticators)
        self._authorizer = Authorizer(config.allowed_callers)
        self._running = 0

    def check_patterns(self, services: Mapping[str, Collection[str] | None]) -> None:
        """Return if every pattern of server.allowed_callers is for something that is served.

        Raises:
            StartError: one is not.

        """
        self._authorizer.check_patterns(services)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the keys of tokens until the end of the block.

        Raises:
            StartError: the file with the keys can't be used.

        """
        async with AsyncExitStack() as stack:
            if self._jwt:
                await stack.enter_async_context(self._jwt.running())
            yield

    async def check(self, call: ServerCall) -> None:
        """Find out who has made a call, and return if they may.

        Raises:
            StatusError: UNAUTHENTICATED, there is no credential; PERMISSION_DENIED, it is wrong.

        """
        path = call.method.path
        if self._certificates:
            _take(call, self._of_certificate(call))
        if self._authenticators and not self._authorizer.is_open_health(path):
            _take(call, await self._authenticated(call))
        self._authorizer.check(path, call.identity)

    def _of_certificate(self, call: ServerCall) -> Caller | None:
        """Return who the certificate is of; a proxy is not who calls."""
        known = identity(call.rpc.context.auth_context())
        return known if known is None or self._proxies.isdisjoint(known.names) else None

    async def _authenticated(self, call: Call) -> Caller | None:
        if self._running >= _MOST_AT_A_TIME:
            raise pushback(f"the server is busy with the credentials of {self._running} calls")
        self._running += 1
        limit = asyncio.timeout(_TIMEOUT)
        try:
            async with limit:
                return await self._first(call)
        except TimeoutError:
            if not limit.expired():
                raise
            text = f"authentication took longer than {_TIMEOUT:g} s"
            raise StatusError(grpc.StatusCode.UNAVAILABLE, text) from None
        finally:
            self._running -= 1

    async def _first(self, call: Call) -> Caller | None:
        for authenticator in self._authenticators:
            caller = await authenticator.authenticate(call)
            if caller is not None:
                if not isinstance(caller, Caller):
                    what = f"{type(authenticator).__name__}.authenticate has returned"
                    raise TypeError(f"{what} {type(caller).__name__}; it must be a Caller or None")
                return caller
        return None


def access(config: ServerSection, authenticators: Sequence[Authenticator]) -> Access | None:
    """Return what finds out who calls a server and checks it, None if callers are not told apart.

    Raises:
        StartError: server.allowed_callers or server.proxies names what nothing can know; PyJWT is missing.

    """
    has_certificates = config.tls.require_client_certificate
    if not (config.allowed_callers or config.proxies or config.jwt or authenticators or has_certificates):
        return None
    mistakes = [*_wrong_proxies(config), *([] if authenticators else _unknowable(config))]
    if mistakes:
        raise StartError("\n".join(mistakes))
    return Access(config, authenticators)


def _unknowable(config: ServerSection) -> Iterator[str]:
    """Yield which kinds of callers are named that the server has no way to know."""
    if not (config.tls.require_client_certificate or config.jwt):
        if config.allowed_callers:
            needed = (
                "server.tls.require_client_certificate: true, server.jwt, or Server(authenticators=[...])"
            )
            yield f"server.allowed_callers needs a way to know callers: {needed}"
        return
    names = dict.fromkeys(name for callers in config.allowed_callers.values() for name in callers)
    for name in names:
        of_token = name.startswith(("subject:", "scope:"))
        if of_token and not config.jwt:
            yield f"server.allowed_callers: {name!r} is of a token, which needs server.jwt"
        if not of_token and not config.tls.require_client_certificate:
            needed = "server.tls.require_client_certificate: true"
            yield f"server.allowed_callers: {name!r} is a SAN, which needs {needed}"


def _wrong_proxies(config: ServerSection) -> Iterator[str]:
    """Yield which proxies can't be known, and which are named as callers, which they never are."""
    if config.proxies and not config.tls.require_client_certificate:
        yield "server.proxies are SANs, which need server.tls.require_client_certificate: true"
    named = {parse_caller(name) for callers in config.allowed_callers.values() for name in callers}
    for name in config.proxies:
        if parse_caller(name) in named:
            what = "is one of server.proxies, and so never a caller"
            yield f"server.allowed_callers: {name!r} {what}; take it out of one of them"


def _jwt_authenticator(config: JwtConfig) -> JwtAuthenticator:
    if importlib.util.find_spec("jwt") is None:
        raise StartError(_NEEDED)
    # Only a server with tokens pays for the import.
    from grpc_common.server.jwt import JwtAuthenticator  # noqa: PLC0415

    return JwtAuthenticator(config)


def _take(call: Call, caller: Caller | None) -> None:
    """Note who has made a call, beside what is known of them."""
    if caller is None:
        return
    known = call.identity
    if known is not None:
        caller = Caller(f"{known.name}, {caller.name}", known.names | caller.names, caller.claims)
    call.identity, call.caller = caller, str(caller)
