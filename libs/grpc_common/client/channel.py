"""The channel of a client: found endpoints, balanced calls, TLS that rotates, a deadline on every call."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from grpc_common.client.balanced_channel import BalancedChannel
from grpc_common.client.balancer.balancer import Balancer
from grpc_common.client.balancer.dialer import Dialer
from grpc_common.client.balancer.outlier_detection import OutlierDetector
from grpc_common.client.balancer.policy import choice_of, policy_of
from grpc_common.client.bearer import refuse_plaintext
from grpc_common.client.call.calls import Calls
from grpc_common.client.call.retry import Throttle
from grpc_common.client.channel_config import ChannelConfig, ChannelSection, Keepalive
from grpc_common.client.channel_state import OpenChannel
from grpc_common.client.following import Following
from grpc_common.client.renewal import Renewal
from grpc_common.client.resolver.endpoint import EndpointSource
from grpc_common.client.resolver.source import args_for, source_of
from grpc_common.client.resolver.target import DnsTarget, KubernetesTarget, Target, parse_target
from grpc_common.client.service_config import ServiceConfig
from grpc_common.core.background import supervise
from grpc_common.core.calls import CallObserver, Interceptor
from grpc_common.core.errors import StartError
from grpc_common.observe.metrics import ClientMetrics
from grpc_common.observe.observers import Observers
from grpc_common.observe.setup import client_observers
from grpc_common.tls.credentials import ClientTLS

if TYPE_CHECKING:
    from grpc_common.observe.tracing import Tracing

_LEAVING = 5.0
"""Seconds in which what a channel follows must end with it."""

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
            A kubernetes:/// target may have other forms, and dns:/// is asked again when its records' TTL is
            over: see docs/balancing.md.
            Or a section of a service's configuration, which holds `tls`, `config` and a token as well.
        tls: certificates; plaintext without.
        config: balancing, deadlines, limits; the defaults without.
        observers: are told about each call; if None, metrics, the log and traces.
        interceptors: run around each call, the first one outermost; see `Interceptor`.
        tracing: makes the spans of calls, as `Server.tracing` does; not used with `observers`. If None, the
            calls that a server's handler makes are traced as that server's are, and others are not.
        endpoints: where the endpoints come from, in place of what `target` says; the target is only
            a name then, and any printable text will do. Without an endpoint a call fails UNAVAILABLE at once,
            or waits for one if it is made with wait_for_ready.
        ready_timeout: seconds to wait for the first connection; None does not wait.

    Raises:
        ValueError: the target has none of these forms and there are no `endpoints`, a section came with `tls`
            or `config`, or a BearerToken would be sent in plaintext.
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
    options: dict[str, Any] = dict(config.options())
    if endpoints is None:
        meant: Target | None = (parsed := parse_target(target))
        source = source_of(parsed, config.channel_args)
        options = args_for(source) | options
    else:
        meant, source = _meaning_of(target), endpoints
    options |= dict(_authority(meant, tls))
    balancer, renewal = _balancer(target, options, tls, config.service)
    following = Following(target, source, balancer)
    told = client_observers(tracing) if observers is None else list(observers)
    metrics = [observer for observer in told if isinstance(observer, ClientMetrics)]
    calls = Calls(
        target=target,
        balancer=balancer,
        observers=Observers(told),
        interceptors=tuple(interceptors),
        throttle=Throttle(config.service.retry_throttling),
        reason=following.reason,
    )
    opened = BalancedChannel(
        calls,
        config.service,
        deadlines=config.deadlines(),
        method_deadlines=config.method_deadlines,
        metrics=metrics,
    )
    with _shown(OpenChannel(target, balancer, source), metrics):
        async with opened, _running(*_work(config.service, balancer, following, renewal)):
            if ready_timeout is not None:
                await _wait_until_ready(opened, following, ready_timeout)
            yield opened


def _meaning_of(name: str) -> Target | None:
    """Return what the name of a channel means that has endpoints of its own; None if it is any other text."""
    try:
        return parse_target(name)
    except ValueError:
        if not (name and name.isprintable()):  # what has no UTF-8 would take the page of metrics away
            raise ValueError(f"the channel's name {name!r} is not a printable text") from None
        return None


def _balancer(
    target: str, options: Mapping[str, Any], tls: ClientTLS | None, service: ServiceConfig
) -> tuple[Balancer, Renewal | None]:
    fingerprint, credentials = (tls.fingerprint(), tls.credentials()) if tls else (None, None)
    outliers = None if service.outlier_detection is None else OutlierDetector(service.outlier_detection)
    balancer = Balancer(
        Dialer(list(options.items()), credentials), policy_of(service), choice_of(service), outliers
    )
    return balancer, Renewal(target, tls, balancer, fingerprint) if tls else None


def _authority(target: Target | None, tls: ClientTLS | None) -> list[tuple[str, str]]:
    """Return the option for the name in the server's certificate: IP addresses stand in few.

    Servers see it as :authority too.
    """
    if tls is not None and tls.server_name is not None:
        return [("grpc.default_authority", tls.server_name)]
    match target:
        case KubernetesTarget():
            return [("grpc.default_authority", target.name)]
        case DnsTarget():
            return [("grpc.default_authority", f"{target.name}:{target.port}")]
    return []


def _work(
    service: ServiceConfig, balancer: Balancer, following: Following, renewal: Renewal | None
) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
    yield following.run
    if service.outlier_detection is not None:
        yield functools.partial(balancer.sweep, service.outlier_detection.interval)
    if renewal is not None:
        yield functools.partial(supervise, f"certificate of the channel to {following.target}", renewal.run)


@contextmanager
def _shown(state: OpenChannel, metrics: Sequence[ClientMetrics]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in metrics:
            stack.callback(each.channels.show(state))
        yield


@asynccontextmanager
async def _running(*work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each()) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        # A source of one's own may swallow its cancellation.
        await asyncio.wait(tasks, timeout=_LEAVING)


async def _wait_until_ready(opened: BalancedChannel, following: Following, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await _first_of(opened.channel_ready(), following.failed.wait())
    except TimeoutError:
        reason = following.reason() or await opened.why_not_ready()
        raise NotReadyError(f"{opened.target} was not ready within {seconds:g} s: {reason}") from None
    if following.failed.is_set() and following.error is not None:
        raise following.error


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of `waits` is over, and end the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
