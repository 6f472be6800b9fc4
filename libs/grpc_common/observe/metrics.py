"""Metrics of calls for Prometheus, under the names that dashboards know from go-grpc-middleware.

They are in the registry that a server is given, by default prometheus_client's own, beside the process's.
Servers with one registry share the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from threading import get_ident
from typing import Any, Literal, Protocol, override

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from grpc_common.core.calls import Call, CallType, Method
from grpc_common.core.errors import StartError
from grpc_common.core.ports import Address
from grpc_common.core.registries import per_registry
from grpc_common.core.sockets import connections
from grpc_common.observe.channel_metrics import ChannelMetrics
from grpc_common.observe.numbers import Families, MethodNumbers

UNKNOWN_METHOD = Method("unknown", "unknown", CallType.UNARY)
"""Stands for every method that a caller asks for and that does not exist: callers must not make labels."""

# Seconds; DefBuckets of Prometheus' Go client, which go-grpc-middleware takes too: services in Go and in
# Python can be added up in one histogram_quantile().
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class CallMetrics(Collector):
    """Counts the calls of all servers, or of all channels, that have one registry.

    It observes calls (`CallObserver`), in any thread. There is one a side: `server_metrics` and
    `client_metrics` have it.
    """

    def __init__(
        self,
        side: Literal["server", "client"],
        registry: CollectorRegistry,
        buckets: Sequence[float] = BUCKETS,
    ) -> None:
        self._side = side
        self.buckets = tuple(buckets)
        self.observer_failures = observer_failures(registry)
        self._methods: dict[str, MethodNumbers] = {}
        registry.register(self)

    def expect(self, methods: Iterable[Method]) -> None:
        """Show the series of `methods` from now on, at 0."""
        for method in methods:
            self._of(method).is_expected = True

    def started(self, call: Call) -> None:
        """Count a call that begins."""
        self._of(call.method)[get_ident()].begin()

    def ended(self, call: Call) -> None:
        """Count a call that has ended."""
        self._of(call.method)[get_ident()].end(call)

    def counted(
        self,
        function: Callable[[Any], Any] | None,
        method: Method,
        direction: Literal["received", "sent"],
    ) -> Callable[[Any], Any]:
        """Return `function`, a serializer or deserializer of `method`, so that it counts messages.

        A deserializer is for messages "received", a serializer for those "sent". None stands, as in grpc,
        for messages that are bytes.
        """
        numbers = self._of(method)

        def received(message: Any) -> Any:
            result = message if function is None else function(message)
            numbers[get_ident()].received += 1
            return result

        def sent(message: Any) -> Any:
            result = message if function is None else function(message)
            numbers[get_ident()].sent += 1
            return result

        return received if direction == "received" else sent

    @override
    def collect(self) -> Iterable[Metric]:
        families = Families(self._side, self.buckets)
        for method in list(self._methods.values()):
            families.add(method)
        return families

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without series, from which the registry has their names."""
        return Families(self._side, self.buckets)

    def _of(self, method: Method) -> MethodNumbers:
        numbers = self._methods.get(method.key)
        if numbers is None:  # another thread may ask for it, too
            numbers = self._methods.setdefault(method.key, MethodNumbers(method, self.buckets))
        return numbers


class ClientMetrics(CallMetrics):
    """Counts the calls of all channels that have one registry, and tells of the channels themselves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.channels = ChannelMetrics()
        super().__init__("client", registry)

    @override
    def collect(self) -> Iterable[Metric]:
        yield from super().collect()
        yield from self.channels.collect()

    @override
    def describe(self) -> Iterable[Metric]:
        yield from super().describe()
        yield from ChannelMetrics().collect()


@per_registry
def observer_failures(registry: CollectorRegistry) -> prometheus_client.Counter:
    """Return the counter `grpc_observer_failures_total{observer="..."}` of a registry."""
    return prometheus_client.Counter(
        "grpc_observer_failures",
        "Exceptions that observers of calls have raised.",
        ["observer"],
        registry=registry,
    )


@per_registry
def _server_metrics(registry: CollectorRegistry, buckets: Sequence[float]) -> CallMetrics:
    return CallMetrics("server", registry, buckets)


def server_metrics(
    registry: CollectorRegistry = prometheus_client.REGISTRY, buckets: Sequence[float] = BUCKETS
) -> CallMetrics:
    """Return the metrics `grpc_server_*` of a registry, with a histogram of `buckets`, in seconds.

    Raises:
        StartError: another server has the same registry, and other buckets.

    """
    metrics = _server_metrics(registry, buckets)
    if metrics.buckets != tuple(buckets):
        raise StartError(
            f"metrics.buckets: {_shown(buckets)} differ from those of another server with the same registry, "
            f"{_shown(metrics.buckets)}; give both the same, or each a registry of its own"
        )
    return metrics


def _shown(buckets: Sequence[float]) -> str:
    return ",".join(f"{bucket:g}" for bucket in buckets)


@per_registry
def client_metrics(registry: CollectorRegistry) -> ClientMetrics:
    """Return the metrics `grpc_client_*` of a registry."""
    return ClientMetrics(registry)


@per_registry
def _connections(registry: CollectorRegistry) -> prometheus_client.Gauge:
    return prometheus_client.Gauge(
        "grpc_server_connections",
        "Established TCP connections of a port that serves gRPC.",
        ["port"],
        registry=registry,
    )


def count_connections(
    address: Address, registry: CollectorRegistry = prometheus_client.REGISTRY
) -> Callable[[], None]:
    """Have `grpc_server_connections{port="..."}` tell the connections of `address`; return what ends it.

    They are counted when the page is read; always 0 where there is no /proc.
    """
    gauge = _connections(registry)
    gauge.labels(address.port).set_function(lambda: len(connections(address)))
    return lambda: gauge.remove(address.port)


@per_registry
def _ready(registry: CollectorRegistry) -> prometheus_client.Gauge:
    return prometheus_client.Gauge(
        "grpc_server_ready", "Whether the server can do its work, 1 or 0.", ["port"], registry=registry
    )


@per_registry
def _dependency_up(registry: CollectorRegistry) -> prometheus_client.Gauge:
    return prometheus_client.Gauge(
        "grpc_server_dependency_up",
        "Whether the server can use what it depends on, 1 or 0.",
        ["port", "dependency"],
        registry=registry,
    )


@per_registry
def _dependency_slow(registry: CollectorRegistry) -> prometheus_client.Gauge:
    return prometheus_client.Gauge(
        "grpc_server_dependency_slow",
        "Whether what the server depends on is up and answers late, 1 or 0.",
        ["port", "dependency"],
        registry=registry,
    )


class Readiness(Protocol):
    """What the gauges show of a server's health."""

    @property
    def ready(self) -> bool:
        """Whether the server can do its work."""

    @property
    def dependencies(self) -> Mapping[str, bool]:
        """What it depends on, by name, and whether that can be used."""

    @property
    def slow_dependencies(self) -> Collection[str]:
        """Those of them that can be used and answer late."""


def _is_up(health: Readiness, dependency: str) -> bool:
    return health.dependencies[dependency]


def _is_slow(health: Readiness, dependency: str) -> bool:
    return dependency in health.slow_dependencies


def show_readiness(
    port: int, health: Readiness, registry: CollectorRegistry = prometheus_client.REGISTRY
) -> Callable[[], None]:
    """Have `grpc_server_ready` and `grpc_server_dependency_*` tell `health`; return what ends it.

    They are asked when the page is read. The label `port` keeps the servers of a process apart.
    """
    ready, up, slow = _ready(registry), _dependency_up(registry), _dependency_slow(registry)
    names = list(health.dependencies)
    ready.labels(port).set_function(lambda: health.ready)
    for name in names:
        up.labels(port, name).set_function(partial(_is_up, health, name))
        slow.labels(port, name).set_function(partial(_is_slow, health, name))

    def end() -> None:
        ready.remove(port)
        for name in names:
            up.remove(port, name)
            slow.remove(port, name)

    return end
