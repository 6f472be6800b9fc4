"""What observes the calls of a server or of a channel: traces, metrics and the access log."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry

from grpc_common.core.calls import CallObserver
from grpc_common.core.errors import StartError
from grpc_common.core.ports import Address, explain_bind_errors
from grpc_common.observe import otel_variables
from grpc_common.observe.access_log import AccessLog
from grpc_common.observe.ambient import AmbientTracing
from grpc_common.observe.logs import configure_default_logging
from grpc_common.observe.loop_lag import lag_of, watching_loop
from grpc_common.observe.metrics import (
    BUCKETS,
    Readiness,
    client_metrics,
    count_connections,
    server_metrics,
    show_readiness,
)
from grpc_common.observe.metrics_page import serve_metrics

if TYPE_CHECKING:
    from grpc_common.observe.tracing import Tracing

_NEEDED = (
    "tracing.enabled needs OpenTelemetry: with Bazel depend on //libs/grpc_common:tracing, "
    "with pip install grpc-on-kubernetes-common[tracing]"
)


_FLUSH = 2.0
"""Seconds for the export of the last traces, within the BOUND of config/process_end.py."""


class Observation:
    """What observes the calls of one server.

    Args:
        metrics_port: where /metrics is served; 0 takes a free port, None counts nothing.
        registry: has the metrics; None for prometheus_client.REGISTRY.
        buckets: of the histogram of calls, in seconds.
        tracing: makes a span of each call, and is shut down with the server; None makes none.

    Raises:
        StartError: see server_metrics.

    """

    def __init__(
        self,
        *,
        metrics_port: int | None,
        port_variable: str,
        tracing: Tracing | None,
        registry: CollectorRegistry | None = None,
        buckets: Sequence[float] = BUCKETS,
    ) -> None:
        configure_default_logging()
        self._port_variable = port_variable
        self._metrics_port = metrics_port
        self._tracing = tracing
        self._registry = prometheus_client.REGISTRY if registry is None else registry
        self.metrics = None if metrics_port is None else server_metrics(self._registry, buckets)
        # In this order: the access log tells the trace's id.
        self.observers: list[CallObserver] = [
            *([] if tracing is None else [tracing.server_observer()]),
            *([] if self.metrics is None else [self.metrics]),
            AccessLog(),
        ]

    @asynccontextmanager
    async def exported(self, health: Readiness, *addresses: Address) -> AsyncIterator[int | None]:
        """Serve the metrics on the port that the block gets, and export the last traces at its end.

        `addresses` are where the server's connections come in, the first one its own port; `health` is what
        the metrics tell of it.

        Raises:
            BindError: the port for metrics is in use or not allowed.

        """
        async with AsyncExitStack() as stack:
            if self._tracing:
                # In a thread, since it may take seconds, in which other servers of the process go on.
                stack.push_async_callback(asyncio.to_thread, self._tracing.shutdown, _FLUSH)
            stack.enter_context(watching_loop(lag_of(self._registry) if self.metrics else None))
            metrics_port = None
            if self._metrics_port is not None:
                with explain_bind_errors(self._metrics_port, self._port_variable):
                    metrics_port, stop = serve_metrics(self._metrics_port, self._registry)
                stack.push_async_callback(asyncio.to_thread, stop)
                for each in addresses:
                    stack.callback(count_connections(each, self._registry))
                stack.callback(show_readiness(addresses[0].port, health, self._registry))
            yield metrics_port


def client_observers(tracing: Tracing | None = None) -> list[CallObserver]:
    """Return what observes the calls of a channel.

    Args:
        tracing: makes a span of each call; if None, that of the server whose handler makes the call.

    """
    configure_default_logging()
    spans = AmbientTracing() if tracing is None else tracing.client_observer()
    return [spans, client_metrics(), AccessLog(client=True)]


def start_tracing(*, service_name: str, sampling_rate: float) -> Tracing:
    """Begin to export spans; see tracing.start_tracing.

    Raises:
        StartError: OpenTelemetry is not installed, or some of its variables can't be used.

    """
    if importlib.util.find_spec("opentelemetry") is None:
        raise StartError(_NEEDED)
    otel_variables.check()
    try:
        # OpenTelemetry is imported by those alone who use it, and its import reads some of the variables.
        from grpc_common.observe import tracing  # noqa: PLC0415
    except ImportError as error:
        raise StartError(f"{_NEEDED} ({error})") from None
    return tracing.start_tracing(service_name=service_name, sampling_rate=sampling_rate)
