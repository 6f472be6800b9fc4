"""The public keys that tokens are signed with: read from a file or a URL, and followed as they rotate."""

import asyncio
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol, override
from urllib.parse import urlsplit

import grpc
import jwt
import structlog

from grpc_common.config.jwks import is_url
from grpc_common.core.errors import StatusError, excerpt, printable
from grpc_common.core.file_version import file_version
from grpc_common.server.public_keys import LARGEST, KeysError, KeySet, parse_keys
from grpc_common.server.threads import Threads

log = structlog.get_logger()

_FILE_PAUSE = 1.0
"""Seconds between two looks at a file's status."""

_URL_PAUSE = 300.0
"""Seconds between two requests; an issuer publishes a key long before it signs with it."""

_RETRY = 10.0
"""Seconds until a request that has failed is repeated, and between those that unknown keys cause."""

_SILENCE = 5.0
"""Seconds that a server may take to connect, and for each part of its answer."""

_ANSWER = 10.0
"""Seconds for the body."""

_READING = 20.0
"""Seconds for all of it: headers that come byte by byte, and files on a network, have no other limit."""

_HUNG = 4
"""Threads that read, or hang in it; once all do, the next one to come free goes on."""

_WAITING = 100
"""Calls with unknown keys that may wait for the keys; they must not keep the others out."""

_IDS_SHOWN = 10
_REASON_LENGTH = 500
"""Characters of a failure in the log."""


class _Source(Protocol):
    pause: float
    version: object
    """Of what was read last; None if that is not known."""

    def read(self) -> bytes | None:
        """Return the content, None if it has not changed."""


class Keys:
    """The newest usable keys; the last good ones stay when there are none.

    Args:
        source: a file or a URL with a JWKS (RFC 7517).
        algorithms: which may be used.

    """

    def __init__(self, source: str, algorithms: Collection[str]) -> None:
        self.current: KeySet = {}
        """Replaced as a whole by other keys."""
        self._where = source
        self._source = _source_of(source)
        self._algorithms = frozenset(algorithms)
        self._threads = Threads(_HUNG, "keys of tokens")
        self._failure: tuple[str, object] | None = None
        """The reason, and the version of the source that it holds for."""
        self._refreshing: asyncio.Task[None] | None = None
        self._looked_at = -_RETRY
        self._waiting = 0

    async def start(self) -> None:
        """Read the keys for the first time.

        Raises:
            KeysError: the file can't be used. An issuer that is away is only logged.

        """
        await self._refresh()
        if self._failure and not is_url(self._where):
            raise KeysError(f"server.jwt.jwks: {self._failure[0]}")

    async def follow(self) -> NoReturn:
        """Read them again whenever they may have changed."""
        while True:
            await asyncio.sleep(min(self._source.pause, _RETRY) if self._failure else self._source.pause)
            await self._refresh_once()

    def find(self, key_id: str | None, algorithm: str) -> Sequence[jwt.PyJWK]:
        """Return the keys that a token may be signed with; one that names none has the only key there is."""
        if key_id is not None or (None, algorithm) in self.current:
            return self.current.get((key_id, algorithm), ())
        found = [keys for (_, each), keys in self.current.items() if each == algorithm]
        return found[0] if len(found) == 1 else ()

    async def look_again(self) -> None:
        """Read the keys now, for a token with an unknown one; but not every time that a stranger asks.

        Raises:
            StatusError: UNAVAILABLE, many wait for them.

        """
        if self._waiting >= _WAITING:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, "the keys of bearer tokens are just being read")
        self._waiting += 1
        try:
            if self._refreshing:  # it may have read what was there before
                await asyncio.wait([self._refreshing])
            await self._look_if_allowed()
        finally:
            self._waiting -= 1

    async def _look_if_allowed(self) -> None:
        if self._refreshing is None:
            now = time.monotonic()
            if now - self._looked_at < _RETRY:
                return
            self._looked_at = now
        await self._refresh_once()

    async def _refresh_once(self) -> None:
        """Read the keys once for all who ask, some of whom may leave meanwhile."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.wait([self._refreshing])

    def _refreshed(self, _task: asyncio.Task[None]) -> None:
        self._refreshing = None

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(_READING):
                found = await self._threads.run(partial(self._read, self._source))
        except TimeoutError:
            self._source = _source_of(self._where)  # the thread that hangs has the old one
            self._failed(f"{self._where}: took longer than {_READING:g} s")
            return
        except Exception as error:  # noqa: BLE001 (whatever it is, the last good keys stay)
            self._failed(str(error) if isinstance(error, KeysError) else f"{self._where}: {error!r}")
            return
        if found is not None:  # else what was read last is still there, be it good or bad
            self._succeeded(found)

    def _read(self, source: _Source) -> KeySet | None:
        """Return the keys, None if they have not changed; runs in a thread."""
        try:
            content = source.read()
            return None if content is None else parse_keys(content, self._algorithms)
        except KeysError as error:
            raise KeysError(printable(f"{self._where}: {error}")) from None

    def _succeeded(self, found: KeySet) -> None:
        event = "keys of tokens can be read again" if self._failure else "keys of tokens"
        if self._failure or found.keys() != self.current.keys():
            log.info(event, jwks=self._where, ids=_shown({str(kid) for kid, _ in found}))
        self.current = found
        self._failure = None

    def _failed(self, reason: str) -> None:
        failure = reason, self._source.version
        if failure != self._failure:
            reason = excerpt(reason, _REASON_LENGTH)
            consequence = "the last ones stay in use" if self.current else "no token can be checked"
            event = f"keys of tokens can't be read, {consequence}"
            log.error(event, reason=reason)
        self._failure = failure


class _File(_Source):
    def __init__(self, path: str) -> None:
        self.pause = _FILE_PAUSE
        self.version: object = None
        self._path = path

    @override
    def read(self) -> bytes | None:
        try:
            status = os.stat(self._path)  # noqa: PTH116 (the kind of file first: a FIFO would hang)
            version = file_version(status)
            if version == self.version:
                return None
            if not stat.S_ISREG(status.st_mode):
                raise KeysError("is no file; write the path of a JWKS")
            with open(self._path, "rb") as file:  # noqa: PTH123 (as above)
                content = file.read(LARGEST + 1)
        except OSError as error:
            self.version = None  # to read what comes back, even if it has not changed
            raise KeysError(error.strerror or type(error).__name__) from None
        self.version = version
        return content


def _shown(ids: set[str]) -> list[str]:
    more = [f"{len(ids) - _IDS_SHOWN} more"] if len(ids) > _IDS_SHOWN else []
    return [excerpt(each) for each in sorted(ids)[:_IDS_SHOWN]] + more


def _source_of(where: str) -> _Source:
    return _Url(where) if is_url(where) else _File(where)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to http://."""

    @override
    def redirect_request(self, *_args: Any, **_options: Any) -> None:
        return None


class _Url(_Source):
    def __init__(self, url: str) -> None:
        self.pause = _URL_PAUSE
        self.version = None
        self._url = url
        # http:// is for this machine alone, of which a proxy is no part.
        proxies = [urllib.request.ProxyHandler({})] if urlsplit(url).scheme == "http" else []
        self._opener = urllib.request.build_opener(_NoRedirects, *proxies)

    @override
    def read(self) -> bytes:
        request = urllib.request.Request(self._url, headers={"Accept": "application/json"})  # noqa: S310 (checked)
        try:
            with self._opener.open(request, timeout=_SILENCE) as response:
                return _body(response)
        except urllib.error.HTTPError as error:
            error.close()
            raise KeysError(f"HTTP status {error.code}") from None
        except OSError as error:
            raise KeysError(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _body(response: Any) -> bytes:
    end, body = time.monotonic() + _ANSWER, b""
    while part := response.read1(LARGEST):
        body += part
        if len(body) > LARGEST:
            break
        if time.monotonic() > end:
            raise KeysError(f"took longer than {_ANSWER:g} s")
    return body
