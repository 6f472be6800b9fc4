"""A gRPC server from its first log line to its last: ports, health, observation, an orderly end."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from prometheus_client import REGISTRY, CollectorRegistry

from grpc_common.config.reload import reload_changes
from grpc_common.config.sections import ServerConfig, TlsConfig, TracingConfig
from grpc_common.core.calls import CallObserver, Interceptor
from grpc_common.core.error_map import ErrorMap, Errors
from grpc_common.core.errors import StartError
from grpc_common.core.signals import ignore_harmless_signals
from grpc_common.observe import stderr
from grpc_common.observe.logs import set_level
from grpc_common.observe.setup import Observation, start_tracing
from grpc_common.server import drain
from grpc_common.server.authentication import Authenticator, access
from grpc_common.server.dependencies import Dependency
from grpc_common.server.end_signals import end_signals
from grpc_common.server.engine import new_server
from grpc_common.server.health import Health
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.server.listeners import Listeners, open_port
from grpc_common.server.reflection import add_reflection
from grpc_common.server.registration import AddToServer, Services

if TYPE_CHECKING:
    from grpc_common.observe.tracing import Tracing

log = structlog.get_logger()

_STOP_GRACE = 1.0
"""Seconds. Grace for `Server.stop` after the drain, when only health watches and idle connections remain, at
least. It has what is left of the drain's grace, too: a client that is slow to read, as a proxy whose own
client is, acknowledges the GOAWAY behind all responses, and may lose these if its connection ends before.
C-core waits for keepalive.timeout, and 20 s at most, for those that never do."""


class Server:
    """Serves servicers until SIGTERM or SIGINT, then drains.

    Make it, add servicers and run it inside one event loop.

    Args:
        config: the settings.
        interceptors: run around each handler, the first one outermost, once the caller is known and let
            in; not around health and reflection. See `Interceptor`.
        authenticators: know callers in ways of one's own, and are asked after certificate and server.jwt.
        observers: are told of each call, as metrics, traces and the log are.
        errors: exceptions of the handlers that have a status, {class: code, or function of the exception
            that makes a StatusError}; see ErrorMap.
        registry: has the server's metrics, and is what its port for metrics serves. None is
            prometheus_client.REGISTRY, with the process's and all channels' metrics. Servers that share
            a registry share the metrics.

    Raises:
        StartError: the certificates can't be used, see TlsConfig; nothing can know server.allowed_callers;
            another server has the same registry and other metrics.buckets.
        TypeError, ValueError: `errors` has what can't be mapped, or can't be a status.

    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        authenticators: Sequence[Authenticator] = (),
        interceptors: Sequence[Interceptor] = (),
        observers: Sequence[CallObserver] = (),
        errors: Errors | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._config = config
        self._resources: list[AbstractAsyncContextManager[object]] = []
        self._drain_delay = config.server.drain.delay
        self._tracing = _tracing(config.tracing)
        self._observation = Observation(
            metrics_port=config.metrics.port if config.metrics.enabled else None,
            port_variable=f"{config.env_prefix}METRICS_PORT",
            tracing=self._tracing,
            registry=registry,
            buckets=config.metrics.buckets,
        )
        self._access = access(config.server, authenticators)
        self._lifecycle = Lifecycle(
            config.server,
            observers=[*self._observation.observers, *observers],
            metrics=self._observation.metrics,
            access=self._access,
            interceptors=interceptors,
            errors=ErrorMap(errors) if errors else None,
        )
        credentials = functools.partial(_credentials, config.server.tls, registry or REGISTRY)
        self._listeners = Listeners(config, credentials)
        self._server = new_server(config.server, self._lifecycle)
        self._health = Health(listed=config.server.reflection)
        self._services = Services(self._server)
        self.add(self._health.servicer, health_pb2_grpc.add_HealthServicer_to_server)

    def add[Servicer](self, servicer: Servicer, add_to_server: AddToServer[Servicer]) -> None:
        """Serve `servicer`.

        `add_to_server` is the generated `add_<Service>Servicer_to_server`, or another function that registers
        any number of services; their names are taken from what it registers.

        Raises:
            StartError: it registers nothing or a service that is served already, or comes too late.

        """
        for name in self._services.add(servicer, add_to_server):
            self._health.add_service(name)

    def use(self, resource: AbstractAsyncContextManager[object]) -> None:
        """Enter `resource`, such as a pool, before the server serves, and leave it after the drain.

        Resources are entered in the order in which they are given, and left in the opposite one. What warms a
        service up belongs into one, before its `yield`. An exception on the way in keeps the server from
        starting: raise a StartError for the operator to read.

        Until all are open, health on server.health_port says NOT_SERVING, and SERVING for `liveness`. The
        gRPC port answers nothing: a livenessProbe of it needs a startupProbe.

        Raises:
            TypeError: it is no asynchronous context manager.
            ValueError: it is used already.
            StartError: it comes too late.

        """
        if not isinstance(resource, AbstractAsyncContextManager):
            raise TypeError(f"Server.use takes an asynchronous context manager, not {resource!r}")
        if any(resource is other for other in self._resources):
            raise ValueError(f"Server.use has {resource!r} already, which can be entered once")
        if self._services.closed:
            raise StartError("Server.use comes too late: use resources before the server runs")
        self._resources.append(resource)

    @property
    def tracing(self) -> Tracing | None:
        """What makes the spans of this server; None without tracing.enabled.

        The calls that handlers make are traced by it already. For those that a program makes elsewhere give
        it to the channel: `channel(target, tracing=server.tracing)`. Spans of your own come from its
        `provider`.
        """
        return self._tracing

    def depend_on(
        self,
        name: str,
        probe: Callable[[], Awaitable[object]],
        *,
        interval: float = 5,
        timeout: float = 2,
        failures: int = 3,
        patience: float = 30,
        required: bool = True,
    ) -> None:
        """Be ready only while what `probe` asks is up; if it is not `required`, only log and metrics tell.

        The probe is called every `interval` seconds, and a second after a failure. The dependency is up once
        it has returned, and down after `failures` in a row that have raised an exception.

        An answer after more than `timeout` seconds makes it slow, not down: all replicas see a shared
        database slow at the same time. A probe without any answer is given up after `patience` seconds; if
        the next one is not answered in time either, the dependency is down. A probe that raises a
        TimeoutError, or something from one, or a call's DEADLINE_EXCEEDED, has had no answer.
        """
        self._health.add_dependency(
            Dependency(name, probe, interval, timeout, failures, patience, required=required)
        )

    async def run(self, **announced: object) -> int:
        """Serve until SIGTERM or SIGINT, drain, and return the exit code 0.

        The first log line has the ports and `announced`. After SIGINT, which is Ctrl-C, the drain
        begins without its delay. A second signal ends the process at once, as if it had no handler.
        SIGHUP, SIGUSR1 and SIGUSR2 are logged, and no more. What anything writes to stderr comes out
        as a line of the log.

        Raises:
            BindError: a port is in use or not allowed.
            StartError: server.allowed_callers names a method that is not served; server.jwt.jwks is unusable.

        """
        stderr.catch_stderr()
        ignore_harmless_signals()
        config = self._config.server.drain
        signals = end_signals(config.delay + config.grace)
        async with AsyncExitStack() as stack:
            try:
                async with signals.interrupting():
                    await stack.enter_async_context(self.serving(**announced))
            except InterruptedError:
                log.info("ended before it served")
                return 0
            signum = await signals.first()
            log.info("ending", signal=signum.name)
            if signum is signal.SIGINT:
                self._drain_delay = 0  # Ctrl-C comes from a terminal, where no load balancer has to notice
        return 0

    @asynccontextmanager
    async def serving(self, **announced: object) -> AsyncIterator[int]:
        """Serve on the port that the block gets, until it ends, and drain then; for programs with other ends.

        Raises:
            BindError: a port is in use or not allowed.
            StartError: server.allowed_callers names a method that is not served; server.jwt.jwks is unusable.

        """
        if self._config.server.reflection:
            self._services.add(list(self._services.methods), add_reflection)
        self._services.close()
        if self._observation.metrics:
            self._observation.metrics.expect(self._services.described())
        if self._access:
            self._access.check_patterns(self._services.methods)
        port = self._listeners.open(self._server)
        async with AsyncExitStack() as stack:
            stack.callback(self._listeners.remove_files)
            if self._access:
                await stack.enter_async_context(self._access.running())
            health_port = await stack.enter_async_context(self._health_port())
            exported = self._observation.exported(self._health, *self._listeners.addresses)
            metrics_port = await stack.enter_async_context(exported)
            for resource in self._resources:
                await stack.enter_async_context(resource)
            self._health.open()
            await self._server.start()
            await stack.enter_async_context(self._health.follow_dependencies())
            await stack.enter_async_context(_reloading(self._config, self._apply))
            ports = {"grpc_port": port, "health_port": health_port, "metrics_port": metrics_port}
            further = {"listen": self._listeners.further} if self._listeners.further else {}
            log.info(
                "serving",
                **{name: number for name, number in ports.items() if number},
                **further,
                **announced,
            )
            try:
                yield port
            finally:
                await self._drain()
                self._listeners.forget_credentials()

    def _apply(self, config: ServerConfig) -> None:
        """Take over the settings that need no restart."""
        set_level(config.logging.level)
        if self._tracing:
            self._tracing.set_sampling_rate(config.tracing.sampling_rate)

    @asynccontextmanager
    async def _health_port(self) -> AsyncIterator[int | None]:
        """Serve health alone, in plaintext, if there is a port for it."""
        if self._config.server.health_port is None:
            yield None
            return
        # Its callers have no identity, and are observed and bounded as those of the other port.
        lifecycle = Lifecycle(
            self._config.server, observers=self._observation.observers, metrics=self._observation.metrics
        )
        server = new_server(self._config.server, lifecycle)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        section = self._config.server
        port = open_port(
            server, section.host, self._config.server.health_port, f"{self._config.env_prefix}HEALTH_PORT"
        )
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)

    async def _drain(self) -> None:
        config = self._config.server.drain
        log.info("draining", delay=self._drain_delay, grace=config.grace)
        stop_grace = _STOP_GRACE
        try:
            self._health.drain()
            await asyncio.sleep(self._drain_delay)
            self._listeners.close()
            stop_grace = max(_STOP_GRACE, await self._quiet())
        finally:  # whatever fails, the server ends
            self._lifecycle.end_built_in_calls()
            # Resources are closed next, so that tasks which clean up still have them.
            cancelling = self._lifecycle.background.cancel(_STOP_GRACE)
            await asyncio.gather(cancelling, self._server.stop(stop_grace))
        log.info("stopped")

    async def _quiet(self) -> float:
        """Wait until no call is left, and return how many seconds of the drain's grace are."""
        admission = self._lifecycle.admission
        began, grace = time.monotonic(), self._config.server.drain.grace
        try:
            async with asyncio.timeout(grace):
                await drain.quiet(admission, *self._listeners.bound)
                while self._lifecycle.background.names():
                    await self._lifecycle.background.ended()
                    await drain.quiet(admission, *self._listeners.bound)
        except TimeoutError:
            background_tasks = self._lifecycle.background.names()
            if admission.in_flight or background_tasks:
                log.warning(
                    "calls outlast the grace and are cancelled",
                    in_flight=admission.in_flight,
                    methods=self._lifecycle.methods_in_flight(),
                    background_tasks=background_tasks,
                )
            elif drain.has_traffic(*self._listeners.bound):
                log.warning("the grace ends before clients have read all that was sent")
        return began + grace - time.monotonic()


def _credentials(config: TlsConfig, registry: CollectorRegistry) -> grpc.ServerCredentials | None:
    if config.directory is None:
        return None
    # Only a server with TLS pays for the import.
    from grpc_common.tls.credentials import server_credentials  # noqa: PLC0415

    return server_credentials(
        config.directory,
        require_client_certificate=config.require_client_certificate,
        registry=registry,
    )


def _tracing(config: TracingConfig) -> Tracing | None:
    if not config.enabled:
        return None
    return start_tracing(service_name=config.service_name, sampling_rate=config.sampling_rate)


@asynccontextmanager
async def _reloading(config: ServerConfig, apply: Callable[[ServerConfig], None]) -> AsyncIterator[None]:
    task = asyncio.create_task(reload_changes(config, apply))
    try:
        yield
    finally:
        task.cancel()
