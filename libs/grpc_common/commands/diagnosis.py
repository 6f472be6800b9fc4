"""What a client meets behind a target: endpoints, their health and TLS, and how calls spread over them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import batched
from typing import Any, Literal

import grpc
from grpc_health.v1 import health_pb2

from grpc_common.client.balanced_channel import BalancedChannel
from grpc_common.client.balancer.balancer import Balancer
from grpc_common.client.channel import ChannelConfig, channel
from grpc_common.client.channel_state import OpenChannel
from grpc_common.client.resolver.endpoint import Endpoint, EndpointSource
from grpc_common.client.resolver.source import StaticEndpoints, args_for, source_of
from grpc_common.client.resolver.target import DnsTarget, KubernetesTarget, endpoint_uri, parse_target
from grpc_common.client.service_config import ServiceConfig, Subset
from grpc_common.commands.finding import DiagnosisError, OverheardEndpoints
from grpc_common.commands.handshake import Handshake, shake_hands
from grpc_common.core.errors import StartError
from grpc_common.observe.channel_metrics import ChannelNumbers
from grpc_common.tls.credentials import ClientTLS

type Policy = Literal["least_request", "round_robin", "pick_first"]

UNUSED = "unused"
"""The state of an endpoint that the client does not connect to."""

# Seconds for a connection, and for one health check.
_TIMEOUT = 5.0

# Health checks on the way at the same time while the spread is measured.
_CONCURRENCY = 10

# Endpoints that are examined at the same time: each has a connection, and a process 1024 files.
_EXAMINED = 100

_ROUND_TRIPS = 20


@dataclass(slots=True)
class Examined:
    """One endpoint of the target, and what was found of it."""

    endpoint: Endpoint

    health: str = ""
    """SERVING, NOT_SERVING and so on, or the name of the status that the check ended with."""

    failure: str = ""
    """The details of that status."""

    round_trips: Sequence[float] = ()
    """Seconds of each health check on a warm connection."""

    handshake: Handshake | None = None
    """None if it does not speak TLS, or plaintext did."""

    state: str = UNUSED
    """That of the channel's connection to it, as in the metric `grpc_client_endpoints`."""

    calls: int = 0
    """How many of the calls over one channel came here."""


@dataclass(slots=True)
class Report:
    """All that was found."""

    target: str
    client: Client
    endpoints: Sequence[Examined]
    channel_args: Mapping[str, int] = field(default_factory=dict)
    """With which its channels are opened."""

    reason: str = ""
    """What the source of the endpoints says is wrong; empty if all is well."""

    age: float | None = None
    """Seconds since the source last said that the endpoints are right; None if they never change."""

    failures: Sequence[str] = ()
    """Why calls over one channel failed; one text a call."""

    numbers: ChannelNumbers = field(default_factory=ChannelNumbers)
    """What this channel has counted, the calls that warm it up included."""

    @property
    def used(self) -> list[Examined]:
        """The endpoints that the channel connects to."""
        return [each for each in self.endpoints if each.state != UNUSED]

    @property
    def fairness(self) -> float:
        """Jain's index of the calls over the endpoints in use: 1 is even, 1/n all to one of n, 0 no calls."""
        calls = [each.calls for each in self.used]
        squares = sum(count**2 for count in calls)
        return sum(calls) ** 2 / (len(calls) * squares) if squares else 0.0


@dataclass(frozen=True, slots=True)
class Client:
    """The client as which a target is examined."""

    policy: Policy = "least_request"
    tls: ClientTLS | None = None
    """As for a channel; None is plaintext."""

    service: str = ""
    """Whose health is asked for; "" is the server's."""

    zone: str = ""
    """Its own zone; "" for no preference."""

    subset: int | None = None
    """How many endpoints it connects to; None for all."""

    calls: int = 1000
    """How many health checks it makes over one channel."""

    def open(self, target: str, source: EndpointSource, policy: Policy, args: Mapping[str, int]) -> Any:
        """Return what opens a channel, in an `async with`."""
        service = ServiceConfig(
            load_balancing=policy,
            health_check_service=self.service,
            zone=self.zone,
            subset=Subset(size=self.subset) if self.subset else None,
        )
        config = ChannelConfig(service=service, channel_args=dict(args))
        return channel(
            target, tls=self.tls, config=config, endpoints=source, observers=(), ready_timeout=None
        )

    async def check(self, opened: grpc.aio.Channel) -> str:
        """Check the health over a channel, and return the status."""
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = opened.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        request = health_pb2.HealthCheckRequest(service=self.service)
        answer = await method(request, timeout=_TIMEOUT)
        status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return status


async def examine(target: str, client: Client = Client()) -> Report:
    """Find the endpoints of a target, examine each of them, and make health checks over one channel.

    Raises:
        ValueError: the target has no known form.
        TlsError: the certificate files can't be used.
        DiagnosisError: the target leads to no endpoint.

    """
    try:
        source = OverheardEndpoints(source_of(parse_target(target), {}))
    except StartError as error:
        raise DiagnosisError(str(error)) from None
    args = args_for(source.source)
    async with client.open(target, source, client.policy, args) as opened:
        assert isinstance(opened, BalancedChannel)
        endpoints = [Examined(endpoint) for endpoint in await source.first()]
        report = Report(target, client, endpoints, args)
        await _examine_all(report)
        await _spread(report, opened)
        balancer = opened.balancer
        known_at = OpenChannel(target, balancer, source.source).known_at()
    report.age = None if known_at is None else time.monotonic() - known_at
    report.reason, report.numbers = source.reason, balancer.numbers
    return report


async def _examine_all(report: Report) -> None:
    turns = asyncio.Semaphore(_EXAMINED)

    async def in_turn(examined: Examined) -> None:
        async with turns:
            await _examine_endpoint(report, examined)

    await asyncio.gather(*(in_turn(each) for each in report.endpoints))


async def _examine_endpoint(report: Report, examined: Examined) -> None:
    address, client, round_trips = examined.endpoint.address, report.client, []
    # With any other policy an endpoint that is NOT_SERVING would only seem to be unreachable.
    source = StaticEndpoints([address])
    async with client.open(report.target, source, "pick_first", report.channel_args) as opened:
        try:
            for _ in range(1 + _ROUND_TRIPS):
                start = time.perf_counter()
                examined.health = await client.check(opened)
                round_trips.append(time.perf_counter() - start)
        except grpc.aio.AioRpcError as error:
            examined.health, examined.failure = error.code().name, error.details() or ""
    examined.round_trips = round_trips[1:]
    if client.tls is not None or examined.failure:
        name = _name_of(report.target, client.tls)
        examined.handshake = await shake_hands(endpoint_uri(address), name, client.tls)


def _name_of(target: str, tls: ClientTLS | None) -> str:
    """Return what a certificate must be for; "" for the address itself."""
    if tls is not None and tls.server_name is not None:
        return tls.server_name
    meant = parse_target(target)
    return meant.name if isinstance(meant, KubernetesTarget | DnsTarget) else ""


async def _spread(report: Report, opened: BalancedChannel) -> None:
    """Count the calls of one channel at each endpoint."""
    failures: list[str] = []

    async def check() -> None:
        try:
            await report.client.check(opened)
        except grpc.aio.AioRpcError as error:
            failures.append(f"{error.code().name}: {error.details()}")

    await _settle(opened.balancer)
    for _ in range(_ROUND_TRIPS):
        await check()
    failures.clear()
    before = _picks(opened.balancer)
    for batch in batched(range(report.client.calls), _CONCURRENCY, strict=False):
        await asyncio.gather(*(check() for _ in batch))
    counts = _picks(opened.balancer) - before
    report.failures = failures
    _count(report, counts, opened.balancer.states())


async def _settle(balancer: Balancer) -> None:
    """Wait until every connection is there or has failed, so that the count does not favour the first."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_TIMEOUT):
            while not balancer.subchannels or {"connecting", "idle"} & set(balancer.states().values()):
                await balancer.wait_for_change()


def _picks(balancer: Balancer) -> Counter[str]:
    return Counter({address: each.picks for address, each in balancer.subchannels.items()})


def _count(report: Report, calls: Counter[str], states: dict[str, str]) -> None:
    if report.client.policy == "pick_first":
        calls, states = _of_first(report, calls, states)
    for each in report.endpoints:
        each.state = states.get(each.endpoint.address, UNUSED)
        # Where there is no connection at all, the balancer gives calls to a dead one, for the reason.
        is_dead = is_unreachable(each) and each.state == "transient_failure"
        each.calls = 0 if is_dead else calls[each.endpoint.address]


def _of_first(
    report: Report, calls: Counter[str], states: dict[str, str]
) -> tuple[Counter[str], dict[str, str]]:
    """Return calls and states by single addresses, where all of them are one for the balancer.

    C-core does not tell which one it has: it takes the first in their order that it can connect to.
    """
    addresses = [address for together in states for address in together.split(",")]
    dead = {each.endpoint.address for each in report.endpoints if is_unreachable(each)}
    first = next((address for address in addresses if address not in dead), "")
    state = next(iter(states.values()), UNUSED)
    others = "idle" if first else state
    return Counter({first: calls.total()}), dict.fromkeys(addresses, others) | {first: state}


def is_unreachable(examined: Examined) -> bool:
    """Return whether there was no answer from an endpoint."""
    return examined.health in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
