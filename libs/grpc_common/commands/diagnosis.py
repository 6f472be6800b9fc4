"""What a client meets behind a target: endpoints, their health and TLS, and how calls spread over them."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any, Literal
from urllib.parse import unquote

import grpc
from grpc._cython import cygrpc  # type: ignore[import-not-found, attr-defined, unused-ignore]  # see _subchannels
from grpc_health.v1 import health_pb2

from grpc_common.client.resolver.endpoint import check_kubernetes
from grpc_common.client.resolver.target import KubernetesTarget, endpoints_target, parse_target
from grpc_common.client.service_config import ServiceConfig
from grpc_common.commands.handshake import Handshake, shake_hands
from grpc_common.core.errors import StartError
from grpc_common.tls.credentials import ClientTLS

type Policy = Literal["round_robin", "pick_first"]

# Seconds for a connection, and for one health check.
_TIMEOUT = 5.0

# Health checks on the way at the same time while the spread is measured.
_CONCURRENCY = 10

_ROUND_TRIPS = 20


class DiagnosisError(Exception):
    """There is nothing to examine; the text says why, and what would help."""


@dataclass(slots=True)
class Endpoint:
    """One address of the target."""

    address: str
    """As gRPC writes it: ipv4:10.0.0.7:50051."""

    health: str = ""
    """SERVING, NOT_SERVING and so on, or the name of the status that the check ended with."""

    failure: str = ""
    """The details of that status."""

    round_trips: Sequence[float] = ()
    """Seconds of each health check on a warm connection."""

    handshake: Handshake | None = None
    """None if it does not speak TLS, or plaintext did."""

    calls: int = 0
    """How many of the calls over one channel came here."""


@dataclass(slots=True)
class Report:
    """All that was found."""

    target: str
    policy: Policy
    has_tls: bool
    endpoints: Sequence[Endpoint]
    failures: Sequence[str]
    """Why calls over one channel failed; one text a call."""

    @property
    def fairness(self) -> float:
        """Jain's index of the calls over the endpoints: 1 is even, 1/n all to one of n, 0 without calls."""
        calls = [endpoint.calls for endpoint in self.endpoints]
        squares = sum(count**2 for count in calls)
        return sum(calls) ** 2 / (len(calls) * squares) if squares else 0.0


async def examine(
    target: str,
    *,
    tls: ClientTLS | None = None,
    service: str = "",
    policy: Policy = "round_robin",
    calls: int = 1000,
) -> Report:
    """Resolve a target, examine each of its endpoints, and make health checks over one channel.

    Args:
        target: as for a channel.
        tls: as for a channel; None is plaintext.
        service: whose health is asked for; "" is the server's.
        policy: how the one channel balances.
        calls: how many health checks it makes.

    Raises:
        ValueError: the target has no known form.
        TlsError: the certificate files can't be used.
        DiagnosisError: the target leads to no endpoint.

    """
    client = await _client(target, tls, service)
    endpoints = [Endpoint(address) for address in await _resolve(client)]
    await asyncio.gather(*(_examine_endpoint(client, endpoint) for endpoint in endpoints))
    failures = await _spread(client, policy, endpoints, calls)
    return Report(target, policy, tls is not None, endpoints, failures)


@dataclass(frozen=True, slots=True)
class _Client:
    """Opens channels as the client of a target would."""

    uri: str
    name: str
    """What the certificate must be for; "" for the address itself."""

    tls: ClientTLS | None
    service: str

    def channel(self, uri: str, policy: Policy = "round_robin") -> grpc.aio.Channel:
        config = ServiceConfig(load_balancing=policy, health_check_service=self.service)
        options: list[tuple[str, Any]] = [
            ("grpc.service_config", config.to_json()),
            # Connections, and their counts, for this channel alone.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_channelz", 1),
        ]
        if self.name:
            options.append(("grpc.default_authority", self.name))
        if self.tls is None:
            return grpc.aio.insecure_channel(uri, options)
        return grpc.aio.secure_channel(uri, self.tls.credentials(), options)

    def check(self, channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryCall[Any, Any]:
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Any] = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        return method(health_pb2.HealthCheckRequest(service=self.service), timeout=_TIMEOUT)


async def _client(target: str, tls: ClientTLS | None, service: str) -> _Client:
    parsed = parse_target(target)
    if isinstance(parsed, KubernetesTarget):
        uri, name = endpoints_target(await _kubernetes_endpoints(parsed)), parsed.name
    elif parsed.uri.startswith(("ipv4:", "ipv6:", "unix:", "unix-abstract:")):
        uri, name = parsed.uri, ""
    else:
        uri, name = parsed.uri, parsed.uri.rpartition("/")[2].removeprefix("dns:").rpartition(":")[0]
    return _Client(uri, (tls and tls.server_name) or name, tls, service)


async def _kubernetes_endpoints(target: KubernetesTarget) -> Sequence[str]:
    try:
        check_kubernetes()
    except StartError as error:
        raise DiagnosisError(str(error)) from None
    # The client of Kubernetes' API takes longer to import than all the rest.
    from grpc_common.client.resolver import kubernetes_api  # noqa: PLC0415
    from grpc_common.client.resolver.api_error import ApiError, ConfigurationError  # noqa: PLC0415
    from grpc_common.client.resolver.endpoint_slices import merge, read_slice, why_empty  # noqa: PLC0415

    namespace = target.namespace or ""
    try:
        async with kubernetes_api.connect(kubernetes_api.load_configuration) as api:
            namespace = namespace or kubernetes_api.own_namespace()
            listed = await kubernetes_api.list_slices(api, target.service, namespace)
    except ApiError as error:
        advice = error.advice(namespace)
        raise DiagnosisError(
            f"the API server answered {error}" + (advice and f"; needed: {advice}")
        ) from error
    except (ConfigurationError, OSError, ValueError) as error:
        raise DiagnosisError(
            f"no answer from the API server: {str(error) or type(error).__name__}"
        ) from error
    slices = [await read_slice(item, target.port) for item in listed.items]
    endpoints = merge(slices)
    if not endpoints:
        raise DiagnosisError(why_empty(slices, target.port))
    return [endpoint.address for endpoint in endpoints]


async def _resolve(client: _Client) -> Sequence[str]:
    """Return what gRPC itself, with its own resolver, makes of the target."""
    async with client.channel(client.uri) as channel:
        state = channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(_TIMEOUT):
                while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                    await channel.wait_for_state_change(state)
                    state = channel.get_state()
        except TimeoutError:
            pass  # an endpoint that does not answer is an endpoint
        addresses = sorted({unquote(data["target"]) for data in _subchannels()})
        if not addresses:
            raise DiagnosisError(await _reason(client, channel))
    return addresses


async def _reason(client: _Client, channel: grpc.aio.Channel) -> str:
    try:
        await client.check(channel)
    except grpc.aio.AioRpcError as error:
        return error.details() or error.code().name
    return "it leads to no endpoint"


def _subchannels() -> Iterator[dict[str, Any]]:
    """Yield the counts for each endpoint of the newest channel.

    A call of grpc.aio does not know its peer, but C-core counts calls: this is what the package
    grpcio-channelz calls to serve the counts by gRPC, which nobody needs here.
    """
    channels = json.loads(cygrpc.channelz_get_top_channels(0))["channel"]
    newest = max(channels, key=lambda channel: int(channel["ref"]["channelId"]))
    for reference in newest.get("subchannelRef", ()):
        yield json.loads(cygrpc.channelz_get_subchannel(int(reference["subchannelId"])))["subchannel"]["data"]


async def _examine_endpoint(client: _Client, endpoint: Endpoint) -> None:
    round_trips = []
    # With round_robin an endpoint that is NOT_SERVING would only seem to be unreachable.
    async with client.channel(endpoint.address, "pick_first") as channel:
        try:
            for _ in range(1 + _ROUND_TRIPS):
                start = time.perf_counter()
                status = (await client.check(channel)).status
                round_trips.append(time.perf_counter() - start)
                endpoint.health = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        except grpc.aio.AioRpcError as error:
            endpoint.health, endpoint.failure = error.code().name, error.details() or ""
    endpoint.round_trips = round_trips[1:]
    if client.tls is not None or endpoint.failure:
        endpoint.handshake = await shake_hands(endpoint.address, client.name, client.tls)


async def _spread(
    client: _Client, policy: Policy, endpoints: Sequence[Endpoint], calls: int
) -> Sequence[str]:
    """Count the calls of one channel at each endpoint; return why calls failed."""
    failures: list[str] = []

    async def check() -> None:
        try:
            await client.check(channel)
        except grpc.aio.AioRpcError as error:
            failures.append(f"{error.code().name}: {error.details()}")

    async with client.channel(client.uri, policy) as channel:
        await _settle(channel)
        for _ in range(_ROUND_TRIPS):
            await check()
        failures.clear()
        before = _counts()
        for batch in batched(range(calls), _CONCURRENCY, strict=False):
            await asyncio.gather(*(check() for _ in batch))
        after = _counts()
    for endpoint in endpoints:
        endpoint.calls = after.get(endpoint.address, 0) - before.get(endpoint.address, 0)
    return failures


async def _settle(channel: grpc.aio.Channel) -> None:
    """Wait until every connection is there or has failed, so that the count does not favour the first."""
    channel.get_state(try_to_connect=True)
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        states = [data["state"]["state"] for data in _subchannels()]
        if states and "CONNECTING" not in states:
            return
        await asyncio.sleep(0.01)  # channelz tells of no change


def _counts() -> dict[str, int]:
    return {unquote(data["target"]): int(data["callsStarted"]) for data in _subchannels()}
