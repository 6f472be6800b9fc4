import asyncio
import itertools
from collections import Counter

import grpc
import pytest

from grpc_common.client.balancer import balancer
from grpc_common.client.channel import channel
from grpc_common.testing.backends import NOT_SERVING, SERVING
from grpc_common.testing.pods import Load, Words, pods, until

ECHO, WATCH = "/test.Backend/Echo", "/test.Backend/Watch"
NAME = "kubernetes:///backend.test:50051"


async def test_fifty_endpoints_added_and_removed_under_load():
    """Each endpoint that comes costs one connection, one that goes is not called again, and no call fails."""
    async with pods(51) as fleet:
        stays, *others = fleet
        words = Words([stays])
        async with channel(NAME, endpoints=words) as opened, Load(opened, words).of(8) as load:
            for number in range(1, 51):
                await words.say([stays, *others[:number]])
            for pod in others:
                await until(lambda pod=pod: pod.calls)
            for number in range(1, 51):
                await words.say([stays, *others[number:]])
                calls = load.done
                await until(lambda calls=calls: load.done > calls + 8)
                assert others[number - 1].newest_word < words.taken
            await until(lambda: not any(pod.open for pod in others))
        assert load.failures == []
    assert [pod.connections for pod in fleet] == [1] * 51


async def test_fleet_replaced_by_one_that_connects_slowly():
    """While new endpoints connect at different times, none gets more than four times its share."""
    async with pods(40) as fleet:
        old, new = fleet[:20], fleet[20:]
        for number, pod in enumerate(new):
            pod.connect_time = 0.02 + 0.48 * number / 19
        words = Words(old)
        async with channel(NAME, endpoints=words) as opened, Load(opened, words).of(20, pause=0.02) as load:
            await until(lambda: load.done > 100)
            await words.say(new)
            before = load.done
            await asyncio.sleep(1)
            await until(lambda: all(pod.calls for pod in new))  # a busy machine connects later
            calls = Counter({pod.address: pod.calls for pod in new})
            share = (load.done - before) / 20
        assert load.failures == []
    assert max(calls.values()) < 4 * share, calls
    assert all(pod.newest_word < words.taken for pod in old)
    assert [pod.connections for pod in new] == [1] * 20


async def test_changes_faster_than_connects():
    """Calls go on to the endpoints that stay, and new ones get theirs once they are connected."""
    async with pods(12) as fleet:
        stays, late, *others = fleet
        for pod in fleet[1:]:
            pod.connect_time = 0.3
        words = Words([stays])
        async with channel(NAME, endpoints=words) as opened, Load(opened, words).of(4, pause=0.01) as load:
            async with asyncio.timeout(60):
                for number in itertools.count():
                    before = load.done
                    await words.say([stays, late, others[number % 10], others[(number + 1) % 10]])
                    await asyncio.sleep(0.1)
                    await until(lambda before=before: load.done > before)
                    if number >= 20 and late.calls > 50:
                        break
        assert load.failures == []
    assert stays.connections == late.connections == 1


async def test_all_endpoints_change_faster_than_connects():
    """Calls wait for one of the newest endpoints, and never go to one that was removed."""
    async with pods(10) as fleet:
        for pod in fleet:
            pod.connect_time = 0.3
        words = Words(fleet[:1])
        async with channel(NAME, endpoints=words) as opened, Load(opened, words).of(4, pause=0.01) as load:
            for number in range(1, 10):
                await words.say([fleet[number]])
                await asyncio.sleep(0.1)
                assert all(pod.newest_word < words.taken for pod in fleet[:number])
            assert not any(pod.calls for pod in fleet[1:9])
            await until(lambda: fleet[9].calls)
        assert load.failures == []


async def test_all_gone_and_back():
    """Without an endpoint a call fails at once, or waits if told to, and goes on once one is back."""
    async with pods(2) as fleet:
        words = Words(fleet)
        async with channel(NAME, endpoints=words) as opened:
            echo = opened.unary_unary(ECHO)
            await words.say([])
            with pytest.raises(grpc.aio.AioRpcError, match="has no endpoint that is ready") as caught:
                await echo(b"")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            waiting = echo(b"", wait_for_ready=True)
            await asyncio.sleep(0.1)
            assert not waiting.done()
            words.put(fleet)
            async with asyncio.timeout(20):
                await waiting
            await echo(b"")


async def test_unhealthy_ones():
    """Endpoints that say NOT_SERVING get no call, and their share again once they are SERVING."""
    async with pods(4) as fleet:
        async with channel(NAME, endpoints=Words(fleet)) as opened, Load(opened).of(4) as load:
            await until(lambda: len(ready(opened)) == 4)
            for pod in fleet[:3]:
                await pod.health.set("", NOT_SERVING)
            await until(lambda: len(ready(opened)) == 1)
            calls = load.done
            await until(lambda: load.done > calls + 8)  # those that were on the way have arrived
            before = [pod.calls for pod in fleet[:3]]
            calls = load.done
            await until(lambda: load.done > calls + 100)
            assert [pod.calls for pod in fleet[:3]] == before
            await fleet[0].health.set("", SERVING)
            await until(lambda: fleet[0].calls > before[0])
        assert load.failures == []
    assert [pod.connections for pod in fleet] == [1] * 4


def ready(opened):
    """Return the subchannels that take calls."""
    every = opened.balancer.subchannels.values()
    return [each for each in every if each.state is grpc.ChannelConnectivity.READY]


async def test_endpoint_that_comes_back_while_a_stream_runs():
    """The stream goes on over the removal, and its connection is the one that is used afterwards."""
    async with pods(2) as fleet:
        words = Words(fleet)
        async with channel(NAME, endpoints=words) as opened:
            await until(lambda: len(ready(opened)) == 2)
            streams = [opened.unary_stream(WATCH)(b"a") for _ in fleet]
            for stream in streams:
                assert await stream.read() == b"a"
            await words.say(fleet[1:])
            await words.say(fleet)
            for pod in fleet:
                pod.release.set()
            for stream in streams:
                assert [response async for response in stream] == [b"a"]
            await asyncio.gather(*(opened.unary_unary(ECHO)(b"") for _ in range(4)))
        assert [pod.connections for pod in fleet] == [1, 1]
        assert all(pod.calls > 1 for pod in fleet)


async def test_calls_that_wait_for_the_first_connection():
    """They don't all stay with the one that connects first: none gets four times its share of hundreds."""
    async with pods(20) as fleet:
        for number, pod in enumerate(fleet):
            pod.connect_time = 0.1 + 0.02 * number
            pod.latency = 0.01
        async with (
            channel(NAME, endpoints=Words(fleet), ready_timeout=None) as opened,
            Load(opened).of(40, pause=0.02) as load,
        ):
            await until(lambda: load.done > 600)  # which takes a second, and longer on a busy machine
            calls = [pod.calls for pod in fleet]
        assert load.failures == []
    assert max(calls) < 4 * sum(calls) / 20, calls


async def test_crowd_that_waits_for_the_first_connection(monkeypatch):
    """Hundreds of calls that wait are spread over the endpoints that come in the next moment."""
    monkeypatch.setattr(balancer, "_MOMENT", 2.0)  # in which a busy machine connects too
    async with pods(20) as fleet:
        for number, pod in enumerate(fleet):
            pod.connect_time = 0.05 + 0.005 * number
        async with channel(NAME, endpoints=Words(fleet), ready_timeout=None) as opened:
            load = Load(opened)
            await asyncio.gather(*(load.call() for _ in range(300)))
        assert load.failures == []
    calls = [pod.calls for pod in fleet]
    assert max(calls) < 4 * 300 / 20, calls
