import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack

import grpc
import prometheus_client
import pytest
from prometheus_client import CollectorRegistry

from grpc_common.client.channel import ChannelConfig, NotReadyError, channel
from grpc_common.client.service_config import OutlierDetection, RetryPolicy, ServiceConfig
from grpc_common.observe.metrics import client_metrics
from grpc_common.testing.backends import NOT_SERVING, Backend, FedEndpoints

ECHO = "/test.Backend/Echo"


class Metrics:
    """The metrics of a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.observers = [client_metrics(self.registry)]

    def value(self, name, target="a:1", **labels):
        """Return the value of a series; None if there is none."""
        return self.registry.get_sample_value(f"grpc_client_{name}", {"target": target, **labels})

    def states(self, target="a:1"):
        """Return how many endpoints are in each state that has any."""
        states = ("ready", "connecting", "transient_failure", "idle", "ejected")
        found = {state: self.value("endpoints", target, state=state) for state in states}
        assert None not in found.values()
        return Counter({state: int(count) for state, count in found.items() if count})

    async def until(self, expected):
        """Wait until the endpoints are in these states, and no others."""
        async with asyncio.timeout(10):
            while self.states() != Counter(expected):
                await asyncio.sleep(0.01)  # Prometheus asks, too; nothing tells of a change


@pytest.fixture
def metrics():
    """Metrics that only this test counts in."""
    return Metrics()


def config(**service):
    """Return the configuration of a channel with these settings of the service."""
    return ChannelConfig(service=ServiceConfig(**service))


async def test_states(metrics):
    """The gauge follows the endpoints: one that is ready, one that nobody serves, one that is not healthy."""
    source = FedEndpoints([])
    async with (
        Backend.serving() as (_, first),
        Backend.serving() as (second_backend, second),
        channel("a:1", endpoints=source, observers=metrics.observers, ready_timeout=None),
    ):
        await metrics.until({})
        source.put([first, second])
        await metrics.until({"ready": 2})
        await second_backend.health.set("", NOT_SERVING)
        await metrics.until({"ready": 1, "transient_failure": 1})
        source.put([first])
        await metrics.until({"ready": 1})
        assert metrics.value("connections_total") == 2


async def test_picks_without_retries(metrics):
    """Each call is one pick, and no retry."""
    async with (
        Backend.serving() as (_, address),
        channel(address, observers=metrics.observers) as client,
    ):
        for _ in range(3):
            await client.unary_unary(ECHO)(b"x")
        assert metrics.value("picks_total", address) == 3
        assert metrics.value("retries_total", address, kind="policy") == 0
        assert metrics.value("retries_total", address, kind="transparent") == 0


async def test_retries_by_policy(metrics):
    """A retry counts, and is a pick of its own; an error that is told to the caller is none."""
    service = config(retryable_methods=["test.Backend/Echo"], retry=RetryPolicy(initial_backoff=0.01))
    async with (
        Backend.serving() as (backend, address),
        channel(address, config=service, observers=metrics.observers) as client,
    ):
        backend.failures = 2
        await client.unary_unary(ECHO)(b"x")
        assert metrics.value("retries_total", address, kind="policy") == 2
        assert metrics.value("picks_total", address) == 3
        backend.failures, backend.code = 1, grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError):
            await client.unary_unary(ECHO)(b"x")
        assert metrics.value("retries_total", address, kind="policy") == 2


async def test_transparent_retries(metrics):
    """A call that found no connection, and went elsewhere, counts as what no server has seen."""
    source = FedEndpoints(["127.0.0.1:1"])
    async with (
        Backend.serving() as (_, address),
        channel("a:1", endpoints=source, observers=metrics.observers, ready_timeout=None) as client,
    ):
        await metrics.until({"transient_failure": 1})
        source.put([address])  # which the channel hears of once the call is on its way
        assert await client.unary_unary(ECHO)(b"x") == b"x"
        assert metrics.value("retries_total", kind="transparent") == 1
        assert metrics.value("retries_total", kind="policy") == 0
        assert metrics.value("picks_total") == 2


async def test_ejections(metrics):
    """An endpoint whose calls fail is ejected: its state says so, and the counter, which stays."""
    outliers = OutlierDetection(interval=0.05, base_ejection_time=0.3, request_volume=5)
    source = FedEndpoints()
    service = config(load_balancing="round_robin", outlier_detection=outliers)
    async with (
        Backend.serving() as (bad, first),
        Backend.serving() as (_, second),
        Backend.serving() as (_, third),
        channel(
            "a:1", endpoints=source, config=service, observers=metrics.observers, ready_timeout=None
        ) as client,
    ):
        source.put([first, second, third])
        await metrics.until({"ready": 3})
        bad.failures = float("inf")
        assert metrics.value("ejections_total") == 0
        async with asyncio.timeout(10):
            while metrics.states()["ejected"] == 0:
                calls = [client.unary_unary(ECHO)(b"x") for _ in range(30)]
                await asyncio.gather(*calls, return_exceptions=True)
        assert metrics.value("ejections_total") == 1
        await metrics.until({"ready": 3})
        assert metrics.value("ejections_total") == 1


class Dated(FedEndpoints):
    """A source that says when it last heard of its endpoints."""

    updated: float | None = None


async def test_age(metrics):
    """The age grows from the moment that the channel was opened, and falls back at the source's next word."""
    source = Dated([])
    before = time.monotonic()
    async with channel("a:1", endpoints=source, observers=metrics.observers, ready_timeout=None):
        first, second = metrics.value("endpoints_age_seconds"), metrics.value("endpoints_age_seconds")
        assert 0 <= first < second <= time.monotonic() - before
        source.updated = time.monotonic() - 1000
        assert 1000 <= metrics.value("endpoints_age_seconds") < 1100
        source.updated = time.monotonic()
        assert metrics.value("endpoints_age_seconds") < 100


async def test_age_of_several_channels(metrics):
    """Of several channels with one target, the age is that of the one that has heard least."""
    sources = [Dated([]), Dated([]), Dated([])]
    for source, age in zip(sources, (100, 3000, 200), strict=True):
        source.updated = time.monotonic() - age
    async with AsyncExitStack() as stack:
        for source in sources:
            opened = channel("a:1", endpoints=source, observers=metrics.observers, ready_timeout=None)
            await stack.enter_async_context(opened)
        assert 3000 <= metrics.value("endpoints_age_seconds") < 3100


async def test_no_age(metrics):
    """Endpoints that never change have no age."""
    async with channel("127.0.0.1:1", observers=metrics.observers, ready_timeout=None):
        assert metrics.value("endpoints_age_seconds", "127.0.0.1:1") is None


async def test_a_closed_channel(metrics):
    """With the channel its gauges go, and its counters stay."""
    async with Backend.serving() as (_, address):
        for calls in (1, 2):
            async with channel(address, observers=metrics.observers) as client:
                assert metrics.states(address) == {"ready": 1}
                await client.unary_unary(ECHO)(b"x")
            assert metrics.value("endpoints", address, state="ready") is None
            assert metrics.value("picks_total", address) == calls
            assert metrics.value("connections_total", address) == calls


async def test_a_channel_that_was_not_ready(metrics):
    """A channel that could not be opened leaves no gauge behind."""
    with pytest.raises(NotReadyError):
        async with channel("127.0.0.1:1", observers=metrics.observers, ready_timeout=0.1):
            pass
    assert metrics.value("endpoints", "127.0.0.1:1", state="ready") is None


async def test_channels_with_one_target_add_up(metrics):
    """Two channels to one target are one series; a third to another target is another."""
    async with (
        Backend.serving() as (_, address),
        Backend.serving() as (_, other),
        channel(address, observers=metrics.observers) as first,
        channel(other, observers=metrics.observers),
    ):
        async with channel(address, observers=metrics.observers) as second:
            for client in (first, second):
                await client.unary_unary(ECHO)(b"x")
            assert metrics.states(address) == {"ready": 2}
            assert metrics.states(other) == {"ready": 1}
            assert metrics.value("picks_total", address) == 2
        assert metrics.states(address) == {"ready": 1}
        assert metrics.value("picks_total", address) == 2


async def test_without_metrics_or_with_the_default():
    """Channels count in prometheus_client's registry; with observers of one's own they are not in it."""

    def ready(target):
        labels = {"target": target, "state": "ready"}
        return prometheus_client.REGISTRY.get_sample_value("grpc_client_endpoints", labels)

    async with Backend.serving() as (_, address):
        async with channel(address, observers=[]):
            assert ready(address) is None
        async with channel(address):
            assert ready(address) == 1


def test_names_are_taken():
    """The registry knows the names before there is a channel, so that nobody else takes them."""
    registry = CollectorRegistry()
    client_metrics(registry)
    with pytest.raises(ValueError, match="grpc_client_endpoints"):
        prometheus_client.Gauge("grpc_client_endpoints", "Mine.", registry=registry)
