"""A client's bearer tokens: from a file that rotates, or from a function that fetches them."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from grpc_common.core.background import is_cancelled
from grpc_common.core.calls import Call, context_without_parent
from grpc_common.core.errors import StatusError
from grpc_common.core.file_version import file_version

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
"""RFC 6750, section 2.1."""

_LONGEST = 64 * 2**10
"""Characters of a token; a server takes 16 KiB of metadata by default."""

_MARGIN = 30.0
"""Seconds before its end in which a token is no longer used: for clocks that differ, and the call itself."""

_SHARE = 0.2
"""The same for tokens of short life: the part of it that is not used."""

_TIMEOUT = 30.0
"""Seconds that fetching a token may take: calls wait for it."""


class BearerToken:
    """Attaches a token to each call: `channel(target, tls=..., interceptors=[BearerToken(fetch)])`.

    A call that has metadata `authorization` of its own keeps that. One that is made with `credentials=` sends
    theirs as well, which servers refuse.

    Args:
        fetch: gets a token. A JWT is kept until shortly before it expires, and a function that fails then is
            asked again with the next call, while the token is good; any other token is fetched for each call.
            However many calls wait, it runs once at a time.
        allow_plaintext: whether the token may be sent without TLS, where anyone on the way can take it.

    Raises:
        StatusError: for the call, before it leaves the process: UNAVAILABLE, the function has failed;
            UNAUTHENTICATED, what it has returned is no token. A StatusError of its own stays as it is.

    """

    def __init__(self, fetch: Callable[[], Awaitable[str]], *, allow_plaintext: bool = False) -> None:
        self.allow_plaintext = allow_plaintext
        self._current: Callable[[], Awaitable[str]] = _Cache(fetch).token

    @classmethod
    def from_file(cls, path: Path | str, *, allow_plaintext: bool = False) -> BearerToken:
        """Take the token from a file, and again when it changes, as Kubernetes' projected tokens do.

        A call fails UNAUTHENTICATED while the file can't be read.
        """
        token = _File(path).token
        bearer = cls(token, allow_plaintext=allow_plaintext)
        bearer._current = token  # a new file is no earlier than the end of the old token
        return bearer

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Attach the token to a call."""
        if not any(key == "authorization" for key, _ in call.metadata):
            call.metadata.append(("authorization", f"Bearer {await self._current()}"))
        yield


def refuse_plaintext(
    interceptors: Iterable[object], target: str, *, tls: bool, target_is_address: bool = True
) -> None:
    """Return if no interceptor of a channel would send what must not be sent in plaintext.

    Args:
        interceptors: those of the channel.
        target: where it leads; a Unix socket is no network.
        tls: whether it is encrypted.
        target_is_address: whether it leads there indeed, and the target is not a mere name.

    Raises:
        ValueError: one would.

    """
    if tls or (target_is_address and is_local(target)):
        return
    if any(getattr(each, "allow_plaintext", True) is False for each in interceptors):
        raise ValueError(
            f"{target!r} without tls would show the bearer token to the network; "
            "give channel(tls=...), or BearerToken(..., allow_plaintext=True)"
        )


def is_local(target: str) -> bool:
    """Return whether what is sent to `target` stays on this machine: on a Unix socket."""
    return target.startswith(("unix:", "unix-abstract:"))


class _Cache:
    """Keeps what a function fetches for as long as it is good."""

    def __init__(self, fetch: Callable[[], Awaitable[str]]) -> None:
        self._fetch = fetch
        self._token = ""
        self._fresh_until = self._good_until = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def token(self) -> str:
        if time.time() < self._fresh_until:
            return self._token
        if self._fetching is None:
            # Others wait for it, too, and the call that is served here may end before.
            context = context_without_parent()
            self._fetching = asyncio.create_task(self._renew(), context=context)
            self._fetching.add_done_callback(self._renewed)
        fetching = self._fetching
        await asyncio.wait([fetching])  # a call that is cancelled leaves the others their token
        if fetching.exception() is not None and time.time() >= self._good_until:
            fetching.result()
        return self._token

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                token = await self._fetch()
        except StatusError:
            raise
        except BaseException as error:  # also the CancelledError of a task of its own; the text may be secret
            if is_cancelled() or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                raise
            text = f"the bearer token could not be fetched ({type(error).__name__})"
            raise StatusError(grpc.StatusCode.UNAVAILABLE, text) from error
        self._token = _checked(token, "what was fetched as a bearer token")
        now, expiry = time.time(), _expiry(self._token)
        left = max(0.0, expiry - now)
        self._good_until = now + left
        self._fresh_until = self._good_until - min(_MARGIN, left * _SHARE)


class _File:
    def __init__(self, path: Path | str) -> None:
        self._path = str(path)
        self._read: object = None
        self._token = ""

    async def token(self) -> str:
        """Return the token; a look at the file's status takes microseconds, so that no call is too late."""
        try:
            status = os.stat(self._path)  # noqa: PTH116 (half the time of Path.stat)
            version = file_version(status)
            if version != self._read:
                self._token = _checked(_content(self._path, status.st_mode), self._path)
                self._read = version
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "its name or content is no text"
            text = f"{self._path!r}: the bearer token can't be read: {reason}"
            raise StatusError(grpc.StatusCode.UNAUTHENTICATED, text) from None
        return self._token


def _content(path: str, mode: int) -> str:
    if not stat.S_ISREG(mode):  # a FIFO would hang
        raise OSError(0, "it is no regular file")
    with open(path, encoding="ascii") as file:  # noqa: PTH123 (a few KB in memory, as projected volumes are)
        return file.read(_LONGEST + 2).strip()


def _checked(token: object, where: str) -> str:
    """Return a token that can be sent; the text of an error has nothing of it."""
    if isinstance(token, str) and len(token) <= _LONGEST and _TOKEN.fullmatch(token):
        return token
    text = f"{where!r} is no bearer token: one word of letters, digits and ._~+/- in ASCII"
    raise StatusError(grpc.StatusCode.UNAUTHENTICATED, text)


def _expiry(token: str) -> float:
    """Return when a token expires, in seconds since 1970, if it is a JWT that says so; 0 otherwise."""
    try:
        _, payload, _ = token.split(".")
        expiry = float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return 0.0
    return expiry if math.isfinite(expiry) else 0.0
