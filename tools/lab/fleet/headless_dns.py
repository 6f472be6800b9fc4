"""The cluster's DNS server, as far as a headless Service needs it."""

from collections.abc import Sequence
from typing import Any

from dnslib import QTYPE, RCODE, RR, A
from dnslib.server import DNSServer


class _NoLog:
    def __getattr__(self, _name: str) -> Any:
        return lambda *_arguments: None


class HeadlessDns:
    """Answers for one name, with the addresses that it was told; other names are not known.

    Args:
        name: of the Service.
        ttl: of each record, in seconds.

    """

    def __init__(self, name: str, ttl: int) -> None:
        self.name = name
        self.addresses: Sequence[str] = ()
        """The A records."""
        self.questions = 0
        """How often the addresses were asked for."""
        self.fails = False
        """Whether all questions are answered with SERVFAIL."""
        self.forgets = False
        """Whether it has no addresses, whatever it was told."""
        self._ttl = ttl
        self._udp, self._tcp = self._servers()
        self.server = f"127.0.0.1:{self._udp.server.server_address[1]}"
        """Where it answers, by UDP and TCP; `dns://SERVER/NAME:PORT` is a target of gRPC."""

    def _servers(self) -> tuple[DNSServer, DNSServer]:
        while True:
            by_udp = DNSServer(self, address="127.0.0.1", port=0, logger=_NoLog())
            port = by_udp.server.server_address[1]
            try:
                return by_udp, DNSServer(self, address="127.0.0.1", port=port, tcp=True, logger=_NoLog())
            except OSError:  # the port is another's by TCP
                by_udp.server.server_close()

    def start(self) -> None:
        """Answer, in threads."""
        for server in (self._udp, self._tcp):
            server.start_thread()

    def stop(self) -> None:
        """Answer no more; this takes up to a second."""
        for server in (self._udp, self._tcp):
            server.stop()
            server.server.server_close()

    def resolve(self, request: Any, _handler: Any) -> Any:
        """Return the reply to a request (dnslib calls it)."""
        reply, question = request.reply(), request.q
        if self.fails:
            reply.header.rcode = RCODE.SERVFAIL
        elif str(question.qname).rstrip(".").lower() != self.name:
            reply.header.rcode = RCODE.NXDOMAIN
        elif question.qtype == QTYPE.A:
            self.questions += 1
            for address in () if self.forgets else self.addresses:
                reply.add_answer(RR(question.qname, QTYPE.A, rdata=A(address), ttl=self._ttl))
        return reply
