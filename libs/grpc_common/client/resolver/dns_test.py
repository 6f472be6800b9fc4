import asyncio
import itertools
import os
import re
import socket
import sys
import threading
import time
from collections import defaultdict
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import structlog
from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, A
from dnslib.server import DNSServer

from grpc_common.client.resolver import dns
from grpc_common.client.resolver.dns import DnsEndpoints, backoff, lifetime
from grpc_common.client.resolver.dns_question import Question

# Bytes of an answer by UDP without EDNS.
_MAX_UDP = 512


class Zone:
    """What a DNS server answers for any name: the records of one, with as few words as a test needs."""

    def __init__(self, *addresses, ttl=0):
        self.addresses = addresses
        self.ttl = ttl
        self.cname_ttl = None
        self.code = defaultdict(lambda: RCODE.NOERROR)  # by the type of the question
        self.go_on = threading.Event()  # answers wait for it
        self.go_on.set()
        self.asked = []  # (name, type, protocol, time)
        self.server = ""

    def resolve(self, request, handler):
        kind = QTYPE[request.q.qtype]
        self.asked.append((str(request.q.qname), kind, handler.protocol, time.monotonic()))
        self.go_on.wait(30)
        reply, name = request.reply(), request.q.qname
        reply.header.rcode = self.code[kind]
        if self.cname_ttl is not None:
            reply.add_answer(RR(name, QTYPE.CNAME, rdata=CNAME("pods.test"), ttl=self.cname_ttl))
            name = "pods.test"
        if self.code[kind] == RCODE.NOERROR:
            reply.add_answer(
                *(self._record(name, kind, each) for each in self.addresses if kind == _type(each))
            )
        if handler.protocol == "udp" and len(reply.pack()) > _MAX_UDP:
            reply.rr, reply.header.tc = [], 1
        return reply

    def _record(self, name, kind, address):
        data = A(address) if kind == "A" else AAAA(address)
        return RR(name, getattr(QTYPE, kind), rdata=data, ttl=self.ttl)

    def fail(self, code):
        self.code.update(dict.fromkeys(("A", "AAAA"), code))

    def questions(self):
        """Return when there were questions for A records."""
        return [moment for _name, kind, _protocol, moment in self.asked if kind == "A"]


def _type(address):
    return "AAAA" if ":" in address else "A"


class _Silent:
    def __getattr__(self, _name):
        return lambda *_arguments: None


class _Current:
    """The zone of the test that runs."""

    zone = Zone()

    def resolve(self, request, handler):
        return self.zone.resolve(request, handler)


@pytest.fixture(scope="module")
def server():
    """Serve the zones of all tests, as a server takes a second to end, by UDP and TCP."""
    current = _Current()
    by_tcp = DNSServer(current, address="127.0.0.1", port=0, tcp=True, logger=_Silent())
    host, port = by_tcp.server.server_address
    by_udp = DNSServer(current, address=host, port=port, logger=_Silent())
    for each in (by_tcp, by_udp):
        each.start_thread()
    yield f"{host}:{port}", current
    for each in (by_tcp, by_udp):
        each.stop()
        each.server.server_close()


@pytest.fixture
def zone(server):
    """A zone with one address at first."""
    address, current = server
    current.zone = zone = Zone("10.0.0.1")
    zone.server = address
    yield zone
    zone.go_on.set()


@asynccontextmanager
async def watching(source):
    """Watch in the background; yield the sets so far, and a function that waits for the next one."""
    queue = asyncio.Queue()

    async def watch():
        async with aclosing(source.watch()) as sets:
            async for endpoints in sets:
                queue.put_nowait(endpoints)

    async def following():
        async with asyncio.timeout(10):
            return await queue.get()

    task = asyncio.create_task(watch())
    try:
        yield following
        assert not task.done(), task.exception()
        assert queue.empty()
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
def hurry(monkeypatch):
    """Questions may follow each other closely, so that what needs several does not take long."""
    monkeypatch.setattr(dns, "_LEAST", 0.05)


async def until(condition):
    """Wait for what nobody announces."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def endpoints_of(zone, name="backend.test", **options):
    """Return the source of a name that the zone's server is asked for."""
    return DnsEndpoints(name, 50051, resolver=zone.server, **options)


async def test_all_addresses(zone):
    """A name means all its A and AAAA records, each once, in an order that says nothing."""
    zone.addresses = ("10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.2")
    source = endpoints_of(zone)
    async with watching(source) as following:
        assert await following() == ["10.0.0.1:50051", "10.0.0.2:50051", "[fd00::1]:50051"]
    assert source.reason == ""
    assert source.updated == pytest.approx(time.monotonic(), abs=5)


async def test_changes_are_followed(zone):
    """With a TTL of 0 a change is seen within about a second, and nothing is asked more often than that."""
    async with watching(endpoints_of(zone)) as following:
        await following()
        zone.addresses = ("10.0.0.2",)
        assert await following() == ["10.0.0.2:50051"]
        await until(lambda: len(zone.questions()) >= 4)
        zone.addresses = ("10.0.0.1", "10.0.0.2")
        assert await following() == ["10.0.0.1:50051", "10.0.0.2:50051"]
    times = zone.questions()
    assert all(after - before >= 0.95 for before, after in itertools.pairwise(times))


async def test_resolve_now(zone):
    """Who has lost a connection need not wait for the TTL, but a hundred losses are one question."""
    zone.ttl = 1000
    source = endpoints_of(zone)
    async with watching(source) as following:
        await following()
        zone.addresses = ("10.0.0.2",)
        for _ in range(100):
            source.resolve_now()
        assert await following() == ["10.0.0.2:50051"]
        await asyncio.sleep(1.2)  # after which a third question would have come
    first, second = zone.questions()
    assert 0.95 <= second - first < 5


@pytest.mark.parametrize(("ttl", "seconds"), [(0, 1), (1, 1), (5, 5), (30, 30), (31, 30), (2**31 - 1, 30)])
def test_lifetime(ttl, seconds):
    """An answer holds for its TTL, within bounds."""
    assert lifetime(ttl) == seconds


def test_backoff():
    """Failures make the waits longer up to 30 s, never shorter than 1 s, and differ from client to client."""
    for failures, bound in ((1, 2), (2, 4), (4, 16), (5, 30), (10_000, 30)):
        waits = [backoff(failures) for _ in range(1000)]
        assert 1 <= min(waits) < 1 + (bound - 1) / 10
        assert bound - (bound - 1) / 10 < max(waits) <= bound
    assert len(set(waits)) > 900


FAILURES = [
    (RCODE.NXDOMAIN, r"there is no such name \(NXDOMAIN\)"),
    (RCODE.NOERROR, "neither A nor AAAA records"),
    (RCODE.SERVFAIL, "SERVFAIL"),
    (RCODE.REFUSED, "REFUSED"),
]


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(("code", "reason"), FAILURES)
async def test_failure_before_the_first_answer(zone, code, reason):
    """A name that can't be resolved yet is asked for again, and who waits can read why."""
    zone.fail(code)
    zone.addresses = ()
    source = endpoints_of(zone)
    assert source.reason == "backend.test is not yet resolved"
    async with watching(source) as following:
        await until(lambda: "can't" in source.reason)
        assert source.updated is None
        assert source.reason.startswith(f"backend.test can't be resolved by {zone.server}: ")
        assert re.search(reason, source.reason)
        zone.addresses = ("10.0.0.1",)
        zone.fail(RCODE.NOERROR)
        assert await following() == ["10.0.0.1:50051"]
        assert source.reason == ""


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(("code", "reason"), FAILURES)
async def test_failure_keeps_the_last_endpoints(zone, code, reason):
    """Whatever goes wrong, the last endpoints stay; one warning says so, however often it fails."""
    source = endpoints_of(zone)
    with structlog.testing.capture_logs() as lines:
        async with watching(source) as following:
            await following()
            updated = source.updated
            zone.fail(code)
            zone.addresses = ()
            await until(lambda: source.reason)
            asked = len(zone.questions())
            await until(lambda: len(zone.questions()) > asked)
            assert source.reason.endswith("; its last 1 endpoints stay in use")
            assert source.updated == updated
            zone.addresses = ("10.0.0.2",)
            zone.fail(RCODE.NOERROR)
            assert await following() == ["10.0.0.2:50051"]
    # When the zone changes between the questions for A and AAAA, there may be one for that mixture, too.
    warnings = [line["reason"] for line in lines if line["log_level"] == "warning"]
    assert len([each for each in warnings if re.search(reason, each)]) == 1
    assert source.reason == ""
    assert source.updated > updated


async def test_server_is_away():
    """Nobody at the DNS server's address is a reason like others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    source = DnsEndpoints("backend.test", 1, resolver=f"127.0.0.1:{port}")
    async with watching(source):
        await until(lambda: "no DNS server listens there" in source.reason)


@pytest.mark.usefixtures("hurry")
async def test_slow_server(zone):
    """A DNS server that does not answer is waited for as long as told."""
    zone.go_on.clear()
    source = endpoints_of(zone, timeout=0.2)
    async with watching(source) as following:
        await until(lambda: "there was no answer within 0.2 s" in source.reason)
        zone.go_on.set()
        assert await following() == ["10.0.0.1:50051"]


@pytest.mark.usefixtures("hurry")
async def test_family_that_fails(zone):
    """If only the question for AAAA fails, those addresses stay, and A records are followed on."""
    zone.addresses = ("10.0.0.1", "fd00::1")
    source = endpoints_of(zone)
    async with watching(source) as following:
        await following()
        zone.code["AAAA"] = RCODE.SERVFAIL
        zone.addresses = ("10.0.0.2",)
        assert await following() == ["10.0.0.2:50051", "[fd00::1]:50051"]
        assert "AF_INET6" in source.reason
        zone.code["AAAA"] = RCODE.NOERROR
        assert await following() == ["10.0.0.2:50051"]
        assert source.reason == ""


async def test_cname(zone):
    """An alias is followed, and its record's TTL counts, too."""
    zone.ttl, zone.cname_ttl = 20, 7
    answer = await Question("backend.test", zone.server, 5).ask()
    assert (answer.addresses, answer.ttl) == (["10.0.0.1"], 7)


async def test_thousand_addresses(zone):
    """What is too long for UDP comes by TCP, complete."""
    zone.addresses = tuple(f"10.0.{i // 250}.{i % 250}" for i in range(1000))
    async with watching(endpoints_of(zone)) as following:
        assert set(await following()) == {f"{address}:50051" for address in zone.addresses}
    assert {protocol for _name, kind, protocol, _time in zone.asked if kind == "A"} == {"udp", "tcp"}


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("backend.test.", "backend.test."),
        ("münchen.test", "xn--mnchen-3ya.test."),
        ("backend", "backend.pods.test."),
    ],
)
async def test_names(zone, monkeypatch, name, asked):
    """Names may be absolute, international, or relative to resolv.conf's search domains."""
    monkeypatch.setenv("LOCALDOMAIN", "pods.test")  # c-ares' and glibc's variable for them
    async with watching(endpoints_of(zone, name)) as following:
        assert await following() == ["10.0.0.1:50051"]
    assert {name for name, *_rest in zone.asked} == {asked}


async def test_hosts_file(zone):
    """What the hosts file knows is no question for a DNS server."""
    async with watching(endpoints_of(zone, "localhost")) as following:
        assert "127.0.0.1:50051" in await following()
    assert zone.asked == []


@pytest.mark.parametrize(
    ("name", "endpoint"), [("127.0.0.1", "127.0.0.1:1"), ("::1", "[::1]:1"), ("[::1]", "[::1]:1")]
)
async def test_address(name, endpoint):
    """An address is its own answer."""
    async with watching(DnsEndpoints(name, "1")) as following:
        assert await following() == [endpoint]


@pytest.mark.parametrize(
    "name",
    ["a" * 64 + ".test", ".".join(["label"] * 60), "a..test", "ü" * 70, "a b.test", "ü..test", ".test"],
)
async def test_malformed_name(zone, name):
    """A name that no DNS can have is told by the reason, and nobody is asked."""
    source = endpoints_of(zone, name)
    async with watching(source):
        await until(lambda: "not a valid DNS name" in source.reason)
    assert zone.asked == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("", 1), "'' is not a DNS name"),
        (("a.test\0", 1), r"'a.test\\x00' is not a DNS name"),
        (("a.test\n", 1), r"'a.test\\n' is not a DNS name"),
        (("a.test", "http"), "port of a.test is 'http', but must be a number from 1 to 65535"),
        (("a.test", 0), "from 1 to 65535"),
        (("a.test", "9" * 5000), "from 1 to 65535"),
        (("a.test", -1), "from 1 to 65535"),
        (("a.test", "²"), "from 1 to 65535"),
    ],
)
def test_mistakes(arguments, error):
    """What can't be resolved ever is refused, with what would be right."""
    with pytest.raises(ValueError, match=error):
        DnsEndpoints(*arguments)


@pytest.mark.parametrize(
    ("resolver", "server"),
    [
        ("10.0.0.10", "10.0.0.10:53"),
        ("10.0.0.10:54", "10.0.0.10:54"),
        ("[fd00::a]:54", "[fd00::a]:54"),
        ("[fd00::a]", "[fd00::a]:53"),
        ("fd00::a", "[fd00::a]:53"),
    ],
)
def test_resolver(resolver, server):
    """A DNS server is an address, with or without a port."""
    assert DnsEndpoints("a.test", 1, resolver=resolver).server == server


@pytest.mark.parametrize(
    "resolver",
    ["dns.test", "10.0.0.10:dns", "10.0.0.10:0", "[fd00::a", "10.0.0:53", ":53", "1.1.1.1,2.2.2.2"],
)
def test_resolver_mistakes(resolver):
    """A DNS server that has to be resolved itself, or makes no sense, is refused."""
    with pytest.raises(ValueError, match=r"IP, IP:PORT or \[IPV6\]:PORT|from 1 to 65535"):
        DnsEndpoints("a.test", 1, resolver=resolver)


def _held():
    """Return how many descriptors and threads this process has."""
    return [sum(1 for _ in Path("/proc/self", kind).iterdir()) for kind in ("fd", "task")]


@pytest.mark.parametrize("answers", [True, False])
async def test_end_leaves_nothing_behind(zone, answers):
    """A watch that ends, between two questions or in the middle of one, holds nothing any more."""
    rounds, slack = 10, 8
    async with watching(endpoints_of(zone)) as following:
        await following()  # from now on pycares has its one thread, which closes channels
    before, tasks = _held(), len(asyncio.all_tasks())
    if not answers:
        zone.go_on.clear()
    for _ in range(rounds):
        asked = len(zone.asked)
        async with watching(endpoints_of(zone)) as following:
            await until(lambda asked=asked: len(zone.asked) > asked)
            if answers:
                await following()
    assert len(asyncio.all_tasks()) == tasks
    zone.go_on.set()
    # What the first watch held may still be in `before`; of ten watches it would be more.
    await until(lambda: all(now < most + slack for now, most in zip(_held(), before, strict=True)))


async def test_import_is_late():
    """Clients of other targets don't pay for c-ares."""
    code = (
        "import sys, grpc_common.client.resolver.dns as _; sys.exit(any(map(sys.modules.get, sys.argv[1:])))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "aiodns", "pycares"),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert await process.wait() == 0
