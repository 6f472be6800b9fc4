import asyncio
import time
from dataclasses import replace

import grpc
import pytest

from grpc_common.client.balancer.subsetting import subset
from grpc_common.client.channel import ChannelConfig, channel
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.service_config import OutlierDetection, ServiceConfig, Subset
from grpc_common.testing.backends import NOT_SERVING, SERVING
from grpc_common.testing.pods import Load, Words, pods, until

NAME = "kubernetes:///backend.test:50051"


def dial(words, **service):
    """Open a channel with a service config."""
    return channel(NAME, endpoints=words, config=ChannelConfig(service=ServiceConfig(**service)))


def at(fleet, *attributes):
    """Return the endpoints of pods, each with its attributes."""
    return [Endpoint(pod.address, **each) for pod, each in zip(fleet, attributes, strict=True)]


async def ready(opened, count):
    """Wait until so many endpoints take calls."""
    every = opened.balancer.subchannels
    is_ready = grpc.ChannelConnectivity.READY
    await until(lambda: sum(each.state is is_ready for each in every.values()) == count)


async def shares(load, fleet, calls=300):
    """Return the part of the next calls that each pod gets."""
    before = [pod.calls for pod in fleet]
    await asyncio.gather(*[load.call() for _ in range(4)])
    for _ in range(calls):
        await load.call()
    got = [pod.calls - was for pod, was in zip(fleet, before, strict=True)]
    assert load.failures == []
    return [each / sum(got) for each in got]


def about(*parts):
    """Return the parts, of which each may be off by 0.07."""
    return pytest.approx(parts, abs=0.07)


ZONES = [{"zone": "a"}] * 4 + [{"zone": "b"}] * 4


async def test_own_zone():
    """Calls stay in the client's zone while enough servers do, spill over, and leave it when it is empty."""
    async with pods(8) as fleet:
        endpoints = at(fleet, *ZONES)
        words = Words(endpoints)
        async with dial(words, zone="a") as opened:
            load = Load(opened)
            await ready(opened, 8)
            assert await shares(load, fleet) == about(*[1 / 4] * 4, *[0] * 4)
            for pod in fleet[:2]:
                await pod.health.set("", NOT_SERVING)
            await ready(opened, 6)
            assert await shares(load, fleet) == about(0, 0, *[0.7 / 2] * 2, *[0.3 / 4] * 4)
            for pod in fleet[:2]:
                await pod.health.set("", SERVING)
            await ready(opened, 8)
            assert await shares(load, fleet) == about(*[1 / 4] * 4, *[0] * 4)
            await words.say(endpoints[4:])
            assert await shares(load, fleet) == about(*[0] * 4, *[1 / 4] * 4)
    assert [pod.connections for pod in fleet] == [1] * 8


async def test_hints():
    """Where all endpoints have hints these count, wherever a server is; they may change at any time."""
    async with pods(4) as fleet:
        plain = at(fleet, *[{"zone": "b"}] * 4)
        words = Words(plain)
        async with dial(words, zone="a") as opened:
            load = Load(opened)
            await ready(opened, 4)
            assert await shares(load, fleet) == about(*[1 / 4] * 4)
            hints = [("a",), ("a", "b"), ("b",), ("c",)]
            await words.say([replace(each, for_zones=hint) for each, hint in zip(plain, hints, strict=True)])
            assert await shares(load, fleet) == about(1 / 2, 1 / 2, 0, 0)
    assert [pod.connections for pod in fleet] == [1] * 4


async def test_weights():
    """A server's share of the calls follows its weight, which costs no connection when it changes."""
    async with pods(3) as fleet:
        words = Words(at(fleet, {"weight": 1}, {"weight": 2}, {"weight": 5}))
        async with dial(words) as opened:
            load = Load(opened)
            await ready(opened, 3)
            assert await shares(load, fleet) == about(1 / 8, 2 / 8, 5 / 8)
            await words.say(at(fleet, {"weight": 5}, {"weight": 5}, {"weight": 10}))
            assert await shares(load, fleet) == about(1 / 4, 1 / 4, 1 / 2)
    assert [pod.connections for pod in fleet] == [1] * 3


async def test_terminating_ones():
    """They get calls only while there is no other endpoint."""
    async with pods(3) as fleet:
        going = at(fleet, {}, {}, {"terminating": True})
        words = Words(going)
        async with dial(words) as opened:
            load = Load(opened)
            await ready(opened, 2)
            assert await shares(load, fleet) == about(1 / 2, 1 / 2, 0)
            await words.say([replace(each, terminating=True) for each in going])
            await ready(opened, 3)
            assert await shares(load, fleet) == about(*[1 / 3] * 3)
            await words.say(at(fleet[:1], {}))
            assert await shares(load, fleet) == about(1, 0, 0)


async def test_slow_start():
    """The share of a new server grows until it is like that of the others."""
    async with pods(3) as fleet:
        words = Words(fleet[:2])
        async with dial(words, slow_start=1) as opened:
            load = Load(opened)
            await ready(opened, 2)
            await asyncio.sleep(1)
            begin = time.monotonic()
            await words.say(fleet)
            await ready(opened, 3)
            first = (await shares(load, fleet, 100))[2]
            # On a busy machine the calls may have come too late to tell.
            assert first < 0.25 or time.monotonic() - begin > 0.5
            await asyncio.sleep(1)
            assert await shares(load, fleet) == about(*[1 / 3] * 3)


async def test_slow_pod():
    """Of one that is ten times slower least_request takes calls away; round_robin does not."""
    part = {}
    for balancing in ("least_request", "round_robin"):
        async with pods(4) as fleet:
            for pod in fleet:
                pod.latency = 0.02
            fleet[0].latency = 0.2
            async with dial(Words(fleet), load_balancing=balancing) as opened, Load(opened).of(12) as load:
                await ready(opened, 4)
                before, calls = fleet[0].calls, load.done
                await until(lambda load=load, calls=calls: load.done > calls + 500)
                part[balancing] = (fleet[0].calls - before) / (load.done - calls)
            assert load.failures == []
    assert part["least_request"] < 0.15
    assert part["round_robin"] > 0.2


async def test_pod_that_fails_fast():
    """It does not attract calls, and with outlier detection gets none."""
    detection = OutlierDetection(interval=0.2, request_volume=5, base_ejection_time=30)
    async with pods(4) as fleet:
        fleet[0].failures, fleet[0].code = float("inf"), grpc.StatusCode.INTERNAL
        for pod in fleet[1:]:
            pod.latency = 0.005
        async with dial(Words(fleet)) as opened, Load(opened).of(4) as load:
            await ready(opened, 4)
            await until(lambda: load.done > 400)
            assert len(load.failures) / load.done < 0.55
        async with dial(Words(fleet), outlier_detection=detection) as opened, Load(opened).of(4) as load:
            balancer = opened.balancer
            await ready(opened, 4)
            await until(lambda: len(balancer._ready()) == 3)  # noqa: SLF001
            before = fleet[0].calls
            calls = load.done
            await until(lambda: load.done > calls + 100)
            assert fleet[0].calls <= before + 4  # those that were on the way


def test_fifty_clients_of_a_thousand_endpoints():
    """Each takes 20; no endpoint has more than three of them, which would be one for each."""
    endpoints = [Endpoint(f"10.0.{number // 250}.{number % 250}:50051") for number in range(1000)]
    clients = dict.fromkeys((each.address for each in endpoints), 0)
    for number in range(50):
        for each in subset(endpoints, 20, f"web-{number}"):
            clients[each.address] += 1
    assert sum(clients.values()) == 1000
    assert max(clients.values()) <= 3
    assert sum(1 for count in clients.values() if count) >= 700


async def test_subset():
    """A client opens as many connections as its subset has endpoints, and two for one that goes."""
    async with pods(20) as fleet:
        words = Words(fleet)
        async with dial(words, subset=Subset(size=5, client="web-3")) as opened:
            await ready(opened, 5)
            used = [pod for pod in fleet if pod.connections]
            assert sum(pod.connections for pod in fleet) == 5
            await words.say([pod for pod in fleet if pod is not used[0]])
            await ready(opened, 5)
            assert sum(pod.connections for pod in fleet) <= 7
