"""Endpoints of a DNS name, asked for again when the records' TTL is over."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from grpc_common.client.resolver.dns_question import Answer

log = structlog.get_logger()

# Seconds between two questions at least: a TTL of 0 or 1 is common for what changes (a pod that is
# ready shall have traffic within a second), and a lost connection must not become a storm of questions.
_LEAST = 1.0

# Seconds between two questions at most, whatever the TTL: that of kubeadm's Corefile, and grpc's own
# dns_min_time_between_resolutions. An external name may have hours, and then its servers move.
_MOST = 30.0

# Seconds until an answer is no longer waited for: glibc's two tries of 5 s.
_TIMEOUT = 10.0

_DNS_PORT = 53
_MAX_PORT = 65535


class DnsEndpoints:
    """The EndpointSource of targets `dns:///NAME:PORT`, `NAME:PORT` and `dns://RESOLVER/NAME:PORT`.

    It knows the hosts file and resolv.conf with its search domains, by c-ares, as gRPC itself. A question
    that fails never changes the endpoints, however long it fails: not even NXDOMAIN, which a DNS server
    also answers that has lost its zone. The balancer knows best whether the last ones still answer.

    Args:
        name: DNS name or IP address (IPv6 with or without brackets).
        port: number of the port.
        resolver: `IP`, `IP:PORT` or `[IPV6]:PORT` of the DNS server to ask; by default those of resolv.conf.
        timeout: seconds until a question without an answer fails.

    Raises:
        ValueError: name, port or resolver can't be used; the text says what would be right.

    """

    def __init__(
        self, name: str, port: str | int, *, resolver: str | None = None, timeout: float = _TIMEOUT
    ) -> None:
        self._name = _checked_name(name)
        self._port = _checked_port(name, port)
        self.server = _server(resolver) if resolver else None
        """The DNS server as `ip:port`; None for those of resolv.conf."""
        self._timeout = timeout
        self._wanted = asyncio.Event()
        self._addresses: list[str] = []
        self._failures = 0
        self.reason = f"{self._name} is not yet resolved"
        """Why the endpoints are not those of a fresh answer, for a person; empty after a good answer."""
        self.updated: float | None = None
        """When the last good answer came, by time.monotonic(); None before the first."""

    def resolve_now(self) -> None:
        """Ask for the addresses before their TTL is over, as when a connection was lost.

        The next question comes at once or a second after the last one. It does not shorten the wait
        after a failure: an unwell DNS server gets no more questions when pods are unwell, too.
        """
        self._wanted.set()

    async def watch(self) -> AsyncIterator[list[str]]:
        """Yield all addresses with the port, sorted, first at once and then each time they change."""
        published: list[str] | None = None
        while True:
            ttl = await self._resolve()
            if self._addresses and self._addresses != published:
                published = self._addresses
                yield [_joined(address, self._port) for address in published]
            await self._pause(ttl)

    async def _resolve(self) -> float | None:
        """Take in the answer to one question; return its TTL, None if there was no good answer."""
        self._wanted.clear()
        if _is_ip(self._name):
            self._note([self._name])
            return _MOST
        # Not before there is a name to resolve: the import takes 40 ms.
        from grpc_common.client.resolver.dns_question import DnsError, Question  # noqa: PLC0415

        try:
            answer = await Question(self._name, self.server, self._timeout).ask(self._addresses)
        except DnsError as error:
            self._note_failure(str(error))
            return None
        self._note_answer(answer)
        return answer.ttl

    async def _pause(self, ttl: float | None) -> None:
        """Wait until the next question."""
        if ttl is None:
            await asyncio.sleep(backoff(self._failures))
            return
        await asyncio.sleep(_LEAST)
        with suppress(TimeoutError):
            async with asyncio.timeout(lifetime(ttl) - _LEAST):
                await self._wanted.wait()

    def _note_answer(self, answer: Answer) -> None:
        if answer.failed and answer.failed != self.reason:
            log.warning("name is resolved in part, its other endpoints stay in use", reason=answer.failed)
        elif self._failures:
            log.info("name is resolved again", name=self._name, endpoints=len(answer.addresses))
        self._note(answer.addresses)
        self.reason = answer.failed

    def _note(self, addresses: list[str]) -> None:
        if self._addresses and addresses != self._addresses:
            log.info("endpoints changed", name=self._name, endpoints=len(addresses))
        self._addresses = addresses
        self._failures = 0
        self.reason = ""
        self.updated = time.monotonic()

    def _note_failure(self, reason: str) -> None:
        self._failures += 1
        if self._addresses:
            reason += f"; its last {len(self._addresses)} endpoints stay in use"
        if reason != self.reason:
            log.warning("name can't be resolved", reason=reason)
        self.reason = reason


def lifetime(ttl: float) -> float:
    """Return the seconds from an answer with such a TTL to the next question."""
    return min(max(ttl, _LEAST), _MOST)


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row, from 1: at random, to spread a fleet."""
    return random.uniform(_LEAST, min(_MOST, _LEAST * 2 ** min(failures, 10)))  # noqa: S311


def _checked_name(name: str) -> str:
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    # c-ares would take a NUL for the end of the name.
    if not bare or not bare.isprintable():
        raise ValueError(f"{name!r} is not a DNS name such as user-service.default")
    return bare


def _checked_port(name: str, port: str | int) -> int:
    text = str(port)
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= _MAX_PORT):
        raise ValueError(f"the port of {name} is {port!r}, but must be a number from 1 to {_MAX_PORT}")
    return int(text)


def _server(resolver: str) -> str:
    """Return the `ip:port` of a DNS server, with port 53 if `resolver` has none."""
    host, port = resolver, str(_DNS_PORT)
    if not _is_ip(host.removeprefix("[").removesuffix("]")):
        host, _, port = resolver.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not _is_ip(bare) or (":" in bare and bare == host != resolver):
        raise ValueError(f"DNS server {resolver!r} is not of the form IP, IP:PORT or [IPV6]:PORT")
    return _joined(bare, _checked_port(f"the DNS server {host}", port))


def _is_ip(text: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(text)
        return True
    return False


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
