"""Metrics, traces and the access log, as a server's configuration asks for them."""

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from grpc_common.config.sections import ServerConfig, TracingConfig
from grpc_common.core.calls import CallObserver
from grpc_common.core.errors import StartError
from grpc_common.core.ports import named
from grpc_common.observe.access_log import AccessLog
from grpc_common.observe.logs import configure_default_logging, set_level
from grpc_common.observe.metrics import client_metrics, count_connections, serve_metrics, server_metrics

if TYPE_CHECKING:
    from grpc_common.observe.tracing import Tracing

_FLUSH = 2.0
"""Seconds for the export of the last traces, within the process_end.BOUND of all that follows a drain."""

_tracing: Tracing | None = None
"""That of this process, once a server has started it: the calls that its servicers make are traced too."""


class Observation:
    """What observes the calls of one server.

    Raises:
        StartError: traces can't be exported as OpenTelemetry's variables say.

    """

    def __init__(self, config: ServerConfig) -> None:
        configure_default_logging()
        self._metrics_config = config.metrics
        self._env_prefix = config.env_prefix
        self.metrics = server_metrics() if config.metrics.enabled else None
        # In this order: the access log tells the trace's id.
        self.observers: list[CallObserver] = [
            *(_server_tracing(config.tracing) if config.tracing.enabled else []),
            *([self.metrics] if self.metrics else []),
            AccessLog(),
        ]

    def apply(self, config: ServerConfig) -> None:
        """Take over the settings that need no restart."""
        set_level(config.logging.level)
        if _tracing:
            _tracing.set_sampling_rate(config.tracing.sampling_rate)

    @contextmanager
    def running(self, port: int) -> Iterator[int | None]:
        """Serve the metrics on the port that the block gets, and export the last traces at its end.

        `port` is where the server's connections come in.

        Raises:
            BindError: the port for metrics is in use or not allowed.

        """
        with ExitStack() as stack:
            if _tracing:
                stack.callback(_tracing.shutdown, _FLUSH)
            metrics_port = None
            if self._metrics_config.enabled:
                with named(self._metrics_config.port, f"{self._env_prefix}METRICS_PORT"):
                    metrics_port, stop = serve_metrics(self._metrics_config.port)
                stack.callback(stop)
                stack.callback(count_connections(port))
            yield metrics_port


def client_observers() -> list[CallObserver]:
    """Return what observes the calls of a channel."""
    configure_default_logging()
    return [*_client_tracing(), client_metrics(), AccessLog(client=True)]


def _server_tracing(config: TracingConfig) -> list[CallObserver]:
    if importlib.util.find_spec("opentelemetry") is None:
        raise StartError(
            "tracing.enabled needs OpenTelemetry: with Bazel depend on //libs/grpc_common:tracing, "
            "with pip install grpc-on-kubernetes-common[tracing]"
        )
    # OpenTelemetry is imported by those alone who use it.
    from grpc_common.observe.tracing import ServerTracing, start_tracing  # noqa: PLC0415

    global _tracing  # noqa: PLW0603 (it is the process's)
    _tracing = start_tracing(service_name=config.service_name, sampling_rate=config.sampling_rate)
    return [ServerTracing(_tracing)]


def _client_tracing() -> list[CallObserver]:
    if _tracing is None:
        return []
    from grpc_common.observe.tracing import ClientTracing  # noqa: PLC0415

    return [ClientTracing(_tracing)]
