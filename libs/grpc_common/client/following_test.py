import asyncio

import pytest
import structlog

from grpc_common.client.channel import channel
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.testing.backends import Backend
from grpc_common.testing.pods import Load, Words, pods

ECHO = "/test.Backend/Echo"
NAME = "kubernetes:///backend.test:50051"


class Source:
    """Does what a test's steps say: yields a set, raises an exception, or calls; then waits for ever."""

    def __init__(self, *steps):
        self._steps = list(steps)
        self.is_through = asyncio.Event()

    async def watch(self):
        """Take the next steps."""
        while self._steps:
            step = self._steps.pop(0)
            if isinstance(step, BaseException):
                raise step
            if step is StopAsyncIteration:
                return
            yield step
        self.is_through.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("nonsense", "reason"),
    [
        ("", "address '' is not of the form IP:PORT, [IPv6]:PORT or unix:PATH"),
        ("nonsense", "address 'nonsense' is not of the form"),
        ("1.2.3.4", "address '1.2.3.4' is not of the form"),
        ("host:1", "address 'host:1' is not of the form"),
        ("1.2.3.4:0", "address '1.2.3.4:0' is not of the form"),
        ("1.2.3.4:65536", "address '1.2.3.4:65536' is not of the form"),
        ("1.2.3.4:1,1.2.3.5:1", "address '1.2.3.4:1,1.2.3.5:1' is not of the form"),
        ("[1.2.3.4]:1", "address '[1.2.3.4]:1' is not of the form"),
        ("::1:1", "address '::1:1' is not of the form"),
        ("unix:", "address 'unix:' is not of the form"),
        ("a\nb:1", r"address 'a\nb:1' is not of the form"),
        (5, "5 is neither an Endpoint nor a text"),
        (None, "None is neither an Endpoint nor a text"),
        (Endpoint(5), "address 5 is not of the form"),
        (Endpoint("1.2.3.4:1", weight=0), "1.2.3.4:1: weight 0 is not a number above 0"),
        (Endpoint("1.2.3.4:1", weight=-1), "1.2.3.4:1: weight -1 is not a number above 0"),
        (Endpoint("1.2.3.4:1", weight=float("nan")), "1.2.3.4:1: weight nan is not a number above 0"),
        (Endpoint("1.2.3.4:1", weight="1"), "1.2.3.4:1: weight '1' is not a number above 0"),
        (Endpoint("1.2.3.4:1", zone=None), "1.2.3.4:1: zone None is not a text"),
        (Endpoint("1.2.3.4:1", node=5), "1.2.3.4:1: node 5 is not a text"),
        (Endpoint("1.2.3.4:1", for_zones="ab"), "1.2.3.4:1: for_zones 'ab' is not a tuple of texts"),
        (Endpoint("1.2.3.4:1", terminating=1), "1.2.3.4:1: terminating 1 is not True or False"),
    ],
    ids=repr,
)
async def test_endpoint_that_makes_no_sense(nonsense, reason):
    """It is left out, the log says why, and the others of its set are used; alone it changes nothing."""
    async with Backend.serving() as (_, address):
        source = Source([nonsense], [address, nonsense], [nonsense])
        with structlog.testing.capture_logs() as logs:
            async with channel(NAME, endpoints=source) as opened:
                await source.is_through.wait()
                await opened.unary_unary(ECHO)(b"")
    [entry] = logs  # and not one each time that it is told again
    assert (entry["event"], entry["target"], entry["count"]) == ("endpoints left out", NAME, 1)
    assert entry["reasons"][0].startswith(reason)


async def test_good_addresses():
    """All forms of addresses that grpc can dial are taken."""
    good = [
        "10.0.0.1:1",
        "[fd00::7]:65535",
        "[fe80::1%2]:5",
        "unix:/run/a b.sock",
        "unix::",
        "unix-abstract:a",
    ]
    source = Source(good)
    with structlog.testing.capture_logs() as logs:
        async with channel(NAME, endpoints=source, ready_timeout=None) as opened:
            await source.is_through.wait()
            assert list(opened.balancer.subchannels) == good
    assert logs == []


@pytest.mark.parametrize(
    "step", [None, 5, "10.0.0.1:1", OSError("gone"), asyncio.CancelledError(), StopAsyncIteration]
)
async def test_source_that_fails(monkeypatch, step):
    """Whatever becomes of a source: the log says it, the last endpoints stay, and it is followed again."""
    monkeypatch.setattr("grpc_common.client.following._SOURCE_INTERVAL", 0.01)
    async with pods(2) as (first, second):
        source = Source([first.address], step, [second.address])
        with structlog.testing.capture_logs() as logs:
            async with channel(NAME, endpoints=source) as opened, Load(opened).of(2) as load:
                await source.is_through.wait()
                second.entered.clear()
                await second.entered.wait()
            assert load.failures == []
    assert [entry["event"] for entry in logs] == ["endpoints not followed, the last ones stay in use"]
    assert logs[0]["target"] == NAME


async def test_source_that_ends():
    """One that has told its endpoints before it ends is as good as any."""

    class Ending:
        async def watch(self):
            yield [address]

    async with Backend.serving() as (_, address):
        for _ in range(5):
            async with channel(NAME, endpoints=Ending()) as opened:
                await opened.unary_unary(ECHO)(b"")


async def test_source_that_never_pauses():
    """Calls go on while a source tells changes without end; same ones and duplicates cost no connection."""

    class Restless:
        turn = 0

        async def watch(self):
            while True:
                self.turn += 1
                yield [first.address, first.address, *[second.address][: self.turn % 2]]

    async with pods(2) as (first, second):
        async with channel(NAME, endpoints=Restless()) as opened:
            for _ in range(100):
                await opened.unary_unary(ECHO)(b"")
        assert first.connections == 1


async def test_source_that_does_not_want_to_end():
    """A channel closes, too, if its source swallows the cancellation."""

    class Stubborn:
        async def watch(self):
            while True:
                yield [address]
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue

    async with Backend.serving() as (_, address), channel(NAME, endpoints=Stubborn()) as opened:
        await opened.unary_unary(ECHO)(b"")


async def test_three_thousand_endpoints_at_once():
    """Calls go on while they come and go, and nobody waits long for the event loop."""
    loop = asyncio.get_running_loop()
    pauses = []

    async def watch_the_loop():
        while True:
            before = loop.time()
            await asyncio.sleep(0)
            pauses.append(loop.time() - before)

    many = [f"unix:/nowhere/{number}" for number in range(3000)]
    async with pods(1) as (pod,):
        words = Words([pod])
        async with channel(NAME, endpoints=words) as opened, Load(opened).of(1) as load:
            watching = asyncio.ensure_future(watch_the_loop())
            await words.say([pod, *many])
            await words.say([pod])
            calls = load.done
            await opened.unary_unary(ECHO)(b"")
            watching.cancel()
        assert load.failures == []
    assert calls > 10
    assert sorted(pauses)[-5] < 0.5  # but for some in which the machine may have stood still
