"""The channel of a client: found endpoints, balanced calls, TLS that rotates, a deadline on every call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from grpc_common.client.bearer import refuse_plaintext
from grpc_common.client.channel_config import ChannelConfig, ChannelSection, Keepalive
from grpc_common.client.dialer import Dialer
from grpc_common.client.resolver.endpoint import EndpointSource
from grpc_common.client.swapping import SwappingChannel, first_of
from grpc_common.core.calls import CallObserver, Interceptor
from grpc_common.core.errors import StartError
from grpc_common.observe.setup import client_observers
from grpc_common.tls.credentials import ClientTLS

if TYPE_CHECKING:
    from grpc_common.observe.tracing import Tracing

__all__ = ["ChannelConfig", "ChannelSection", "Keepalive", "NotReadyError", "channel"]


class NotReadyError(StartError, TimeoutError):
    """A channel was not ready in time; the text names the target and the last reason.

    A service that needs the channel at start may let it pass: the operator reads it, without a traceback.
    """


@asynccontextmanager
async def channel(
    target: str | ChannelSection,
    *,
    tls: ClientTLS | None = None,
    config: ChannelConfig | None = None,
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
            Or a section of a service's configuration, which holds `tls`, `config` and a token as well.
        tls: certificates; plaintext without.
        config: balancing, deadlines, limits; the defaults without.
        observers: are told about each call; if None, metrics, the log and traces.
        interceptors: run around each call, the first one outermost; see `Interceptor`.
        tracing: makes the spans of calls, as `Server.tracing` does; not used with `observers`. If None, the
            calls that a server's handler makes are traced as that server's are, and others are not.
        endpoints: where the endpoints come from, in place of what `target` says; the target is only
            a name then. Without an endpoint a call fails UNAVAILABLE at once, or waits for one if it
            is made with wait_for_ready.
        ready_timeout: seconds to wait for the first connection; None does not wait.

    Raises:
        ValueError: the target has none of these forms, a section came with `tls` or `config`, or a
            BearerToken would be sent in plaintext.
        TlsError: the certificate files can't be used.
        StartError: the target is kubernetes:///, and the packages for it, or any way to the API server, are
            missing.
        NotReadyError: no connection within `ready_timeout`.
        Exception: what the source of endpoints raises before it has any, unless `ready_timeout` is None.

    """
    if isinstance(target, ChannelSection):
        if tls is not None or config is not None:
            raise ValueError("a ChannelSection holds tls and config; change them there (model_copy)")
        interceptors = [*target.bearer_tokens(), *interceptors]
        tls, config, target = target.client_tls(), target, target.target
    refuse_plaintext(interceptors, target, tls=tls is not None, target_is_address=endpoints is None)
    config = config or ChannelConfig()
    dialer = Dialer(target, tls, config.options(), endpoints)
    swapping = SwappingChannel(
        target,
        dialer.open,
        open_blocking=dialer.open_blocking,
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
