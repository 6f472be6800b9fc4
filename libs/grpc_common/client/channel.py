"""The channel of a client: found endpoints, balanced calls, TLS that rotates, a deadline on every call."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from grpc_common.client.dialer import Dialer
from grpc_common.client.endpoints import EndpointSource
from grpc_common.client.service_config import ServiceConfig, split_path
from grpc_common.client.swapping import SwappingChannel, first_of
from grpc_common.core.calls import CallObserver, CallType, Interceptor
from grpc_common.observe.setup import client_observers
from grpc_common.tls.credentials import ClientTLS

if TYPE_CHECKING:
    from grpc_common.observe.tracing import Tracing

_MEBIBYTE = 2**20

# Seconds; the default of the server's keepalive.min_time.
_LEAST_KEEPALIVE_TIME = 5


class NotReadyError(TimeoutError):
    """A channel was not ready in time; the text names the target and the last reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """How a client finds out that a server is gone without a word, with or without calls on the way."""

    time: float = 10
    """Seconds of silence until the server is pinged: 5 at least, since a server cuts off (`too_many_pings`)
    whoever pings more often than its keepalive.min_time, which is 5 s by default."""

    timeout: float = 3
    """Seconds that the answer may take."""

    def __post_init__(self) -> None:
        """Refuse what a server would punish.

        Raises:
            ValueError: a time is too short.

        """
        if self.time < _LEAST_KEEPALIVE_TIME:
            raise ValueError(
                f"time={self.time} is less than {_LEAST_KEEPALIVE_TIME} s, the servers' keepalive.min_time; "
                "they cut off whoever pings more often"
            )
        if self.timeout <= 0:
            raise ValueError(f"timeout={self.timeout} is not more than 0")

    def options(self) -> list[tuple[str, int]]:
        """Return the options of a channel."""
        timeout = round(self.timeout * 1000)
        return [
            ("grpc.keepalive_time_ms", round(self.time * 1000)),
            ("grpc.keepalive_timeout_ms", timeout),
            # Without it C-core waits a minute for the answer, whatever keepalive_timeout_ms says.
            ("grpc.http2.ping_timeout_ms", timeout),
            ("grpc.keepalive_permit_without_calls", 1),
            # Without it pings stop after two, as long as no data is sent.
            ("grpc.http2.max_pings_without_data", 0),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """The settings of a channel; its defaults go with those of `grpc_common.Server`."""

    service: ServiceConfig = field(default_factory=ServiceConfig)
    """Balancing, health checks, retries."""

    keepalive: Keepalive = field(default_factory=Keepalive)
    """How a dead server is found."""

    max_recv_msg_size: int = 10 * _MEBIBYTE
    """Bytes of the largest message that the client takes."""

    max_send_msg_size: int = 10 * _MEBIBYTE
    """Bytes of the largest message that the client sends."""

    max_metadata_size: int = 16 * 2**10
    """Bytes of the largest metadata that the client takes, a status with its text and details included;
    HTTP/2 counts each name and value and 32 bytes."""

    default_deadline: float = 30
    """Seconds for a unary call that is made without a timeout."""

    default_stream_deadline: float = 300
    """Seconds for a streaming call that is made without a timeout."""

    method_deadlines: Mapping[str, float] = field(default_factory=dict)
    """The same for single methods: {"user.UserService/GetUser": 2}. A call's own timeout always wins, be it
    longer or shorter: that is why this is not the `timeout` of gRPC's service config, which is a maximum."""

    def __post_init__(self) -> None:
        """Refuse deadlines that would never hold.

        Raises:
            ValueError: a number or a method's name can't be used.

        """
        for path in self.method_deadlines:
            split_path(path)
        deadlines = {
            "default_deadline": self.default_deadline,
            "default_stream_deadline": self.default_stream_deadline,
            **self.method_deadlines,
        }
        for name, seconds in deadlines.items():
            if not seconds > 0:
                raise ValueError(f"{name}={seconds} is not more than 0")

    def options(self) -> list[tuple[str, Any]]:
        """Return the options of a channel."""
        return [
            ("grpc.service_config", self.service.to_json()),
            # Without it a changed record is seen half a minute late; the server's max age asks for a look.
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
            # By default a server that was away for a minute is tried again only after up to two more.
            ("grpc.max_reconnect_backoff_ms", 5000),
            ("grpc.max_receive_message_length", self.max_recv_msg_size),
            ("grpc.max_send_message_length", self.max_send_msg_size),
            # Where the two differ, C-core refuses at random what lies between them.
            ("grpc.max_metadata_size", self.max_metadata_size),
            ("grpc.absolute_max_metadata_size", self.max_metadata_size),
            *self.keepalive.options(),
        ]

    def deadlines(self) -> dict[CallType, float]:
        """Return the seconds for calls without a timeout."""
        return dict.fromkeys(CallType, self.default_stream_deadline) | {CallType.UNARY: self.default_deadline}


@asynccontextmanager
async def channel(
    target: str,
    *,
    tls: ClientTLS | None = None,
    config: ChannelConfig = ChannelConfig(),
    observers: Iterable[CallObserver] | None = None,
    interceptors: Sequence[Interceptor] = (),
    tracing: Tracing | None = None,
    endpoints: EndpointSource | None = None,
    ready_timeout: float | None = 10,
) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel for generated stubs, and close it at the end of the block.

        async with channel("kubernetes:///user-service.default:50051") as user_channel:
            stub = UserServiceStub(user_channel)

    A call that runs when the block ends is cancelled. New certificate files are in use about a
    second after they were written, with no failed call; files that can't be used are logged, and
    the old certificate serves on.

    Args:
        target: `kubernetes:///SERVICE.NAMESPACE:PORT`, `dns:///NAME:PORT`, `dns://RESOLVER/NAME:PORT`,
            `NAME:PORT`, `ipv4:ADDRESS:PORT[,...]`, `ipv6:[ADDRESS]:PORT[,...]` or `unix:PATH`.
            The server's certificate must be for SERVICE.NAMESPACE as it is written here, or for NAME.
            DNS is asked again when a connection ends, which a maximal age of connections sees to.
        tls: certificates; plaintext without.
        config: balancing, deadlines, limits.
        observers: are told about each call; if None, metrics, the log and traces.
        interceptors: run around each call, the first one outermost; see `Interceptor`.
        tracing: makes the spans of calls, as `Server.tracing` does; not used with `observers`. If None, the
            calls that a server's handler makes are traced as that server's are, and others are not.
        endpoints: where the endpoints come from, in place of what `target` says; the target is only
            a name then. Without an endpoint a call fails UNAVAILABLE at once, or waits for one if it
            is made with wait_for_ready.
        ready_timeout: seconds to wait for the first connection; None does not wait.

    Raises:
        ValueError: the target has none of these forms.
        TlsError: the certificate files can't be used.
        NotReadyError: no connection within `ready_timeout`.
        Exception: what the source of endpoints raises before it has any, unless `ready_timeout` is None.

    """
    dialer = Dialer(target, tls, config.options(), endpoints)
    swapping = SwappingChannel(
        target,
        dialer.open,
        deadlines=config.deadlines(),
        method_deadlines=config.method_deadlines,
        observers=client_observers(tracing) if observers is None else list(observers),
        interceptors=interceptors,
    )
    async with swapping:
        tasks = [asyncio.create_task(work) for work in (swapping.follow(dialer.changed), *dialer.followers())]
        try:
            if ready_timeout is not None:
                await _wait_until_ready(swapping, dialer, ready_timeout)
            yield swapping
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            dialer.close()


async def _wait_until_ready(swapping: SwappingChannel, dialer: Dialer, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await first_of(swapping.channel_ready(), dialer.source_failed.wait())
    except TimeoutError:
        reason = await swapping.why_not_ready()
        raise NotReadyError(f"{swapping.target} was not ready within {seconds:g} s: {reason}") from None
    if dialer.source_error is not None:
        raise dialer.source_error
