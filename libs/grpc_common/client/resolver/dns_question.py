"""One question to the DNS, by c-ares: the resolver that gRPC itself uses."""

import asyncio
import logging
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import aiodns
import pycares

# All that aiodns logs is that it can't watch resolv.conf, as a node's 128 inotify instances are in use.
# It is of no interest here: each question reads the file.
logging.getLogger("aiodns").setLevel(logging.ERROR)

# ARES_AI_NOSORT of ares.h, which pycares has no name for: by default c-ares opens a socket for each
# address to put the nearest first, and a balancer uses all of them.
_NO_SORT = 1 << 7

_GONE = {aiodns.error.ARES_ENODATA, aiodns.error.ARES_ENOTFOUND}

_BAD_NAME = "it is not a valid DNS name, which has labels of 1 to 63 characters and 253 in all"

# What c-ares' texts leave open.
_REASONS = {
    aiodns.error.ARES_ENOTFOUND: "there is no such name (NXDOMAIN); is it spelled SERVICE.NAMESPACE?",
    aiodns.error.ARES_ENODATA: "the name has neither A nor AAAA records; "
    "that of a headless Service has them when a pod is ready",
    aiodns.error.ARES_ESERVFAIL: "the DNS server can't tell at the moment (SERVFAIL)",
    aiodns.error.ARES_EREFUSED: "the DNS server does not answer this client or this name (REFUSED)",
    aiodns.error.ARES_ECONNREFUSED: "no DNS server listens there",
    aiodns.error.ARES_ETIMEOUT: "the DNS server does not answer",
    aiodns.error.ARES_EBADNAME: _BAD_NAME,
}


class DnsError(Exception):
    """A question without a good answer; the text says what was asked of whom, and what came."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses of a name."""

    addresses: list[str]
    """IP addresses without brackets, sorted, each once; at least one."""

    ttl: float
    """Seconds that the answer holds for: the least of its records."""

    failed: str = ""
    """Why the addresses of one family are those of an earlier answer, if they are."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be asked, as often as need be.

    Each time it has its own c-ares channel. So it reads resolv.conf and the hosts file anew, gets no
    answer out of c-ares' cache (which would make it useless to ask again early), and between two times
    there is neither a thread nor a descriptor.
    """

    name: str
    """A DNS name."""

    server: str | None
    """`ip:port` of the DNS server, by default those of resolv.conf."""

    timeout: float
    """Seconds until it fails; the double if the answer lacks a family of addresses that was there before."""

    async def ask(self, known: Collection[str] = ()) -> Answer:
        """Return the addresses of the name, those of the last answer being `known`.

        Raises:
            DnsError: there is no good answer.

        """
        asked = self.server or "the DNS servers of resolv.conf"
        try:
            async with aiodns.DNSResolver([self.server] if self.server else None) as resolver:
                asked = self.server or ", ".join(resolver.nameservers)
                return await self._answer(resolver, known)
        except (aiodns.error.DNSError, pycares.AresError, TimeoutError, UnicodeError) as error:
            raise DnsError(f"{self.name} can't be resolved by {asked}: {self._reason(error)}") from None

    async def _answer(self, resolver: aiodns.DNSResolver, known: Collection[str]) -> Answer:
        result = await self._records(resolver, socket.AF_UNSPEC)
        addresses, failed = set(map(_text, result.nodes)), ""
        # c-ares takes the addresses of one family for success even if the question for the other failed.
        for family in _families(known) - _families(addresses):
            try:
                addresses.update(map(_text, (await self._records(resolver, family)).nodes))
            except (aiodns.error.DNSError, TimeoutError) as error:
                if _code(error) not in _GONE:
                    addresses.update(address for address in known if _family(address) == family)
                    failed = f"{self.name} has no answer for {family.name}: {self._reason(error)}"
        ttls = [node.ttl for node in result.nodes] + [cname.ttl for cname in result.cnames]
        return Answer(sorted(addresses), min(ttls), failed)

    async def _records(
        self, resolver: aiodns.DNSResolver, family: socket.AddressFamily
    ) -> pycares.AddrInfoResult:
        async with asyncio.timeout(self.timeout):
            result = await resolver.getaddrinfo(self.name, family, type=socket.SOCK_STREAM, flags=_NO_SORT)
        if not result.nodes:
            raise aiodns.error.DNSError(aiodns.error.ARES_ENODATA, "no data")
        return result

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"there was no answer within {self.timeout:g} s"
        if isinstance(error, UnicodeError):
            return _BAD_NAME
        return _REASONS.get(_code(error), str(error.args[-1]))


def _code(error: Exception) -> int:
    """Return c-ares' number for an error, 0 if it has none."""
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def _text(node: pycares.AddrInfoNode) -> str:
    address: bytes = node.addr[0]
    return address.decode()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _families(addresses: Iterable[str]) -> set[socket.AddressFamily]:
    return set(map(_family, addresses))
