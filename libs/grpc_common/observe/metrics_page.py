"""Serves the metrics of a process over HTTP, for Prometheus."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, override

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from grpc_common.core.registries import per_registry
from grpc_common.observe import writer
from grpc_common.observe.metrics_port import HttpServer

log = structlog.get_logger()


class _LogLines(Collector):
    @override
    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Lines of the log that could not be written, by reason."
        dropped = CounterMetricFamily("grpc_log_lines_dropped", text, labels=["reason"])
        for reason, count in list(writer.lines.dropped.items()):
            dropped.add_metric([reason], count)
        yield dropped

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Have the registry know the name, or a page could have it twice."""
        return self.collect()


@per_registry
def _count_log_lines(registry: CollectorRegistry) -> None:
    registry.register(_LogLines())


def serve_metrics(
    port: int, registry: CollectorRegistry = prometheus_client.REGISTRY
) -> tuple[int, Callable[[], None]]:
    """Serve a registry over HTTP at every path, from a thread of its own.

    It listens on all interfaces, over IPv4, and over IPv6 where the machine has it. Port 0 takes a free one.

    Returns:
        The port, and a function that stops serving.

    Raises:
        OSError: the port can't be bound.

    """
    _count_log_lines(registry)
    server = HttpServer(port, _page_of(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, stop


class _WithoutCreated(Collector):
    """A registry without the series *_created, which double a page and which Prometheus does not use.

    prometheus_client can leave them out itself, but only for everything in the process.
    """

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            if metric.type in {"counter", "histogram", "summary"}:
                created = f"{metric.name}_created"
                metric = copy.copy(metric)  # noqa: PLW2901 (it is the collector's)
                metric.samples = [sample for sample in metric.samples if sample.name != created]
            yield metric

    def restricted_registry(self, names: Iterable[str]) -> Collector:
        """Return a registry of these series alone, for requests with `?name[]=`."""
        return _WithoutCreated(self._registry.restricted_registry(names))


def _page_of(registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    app = prometheus_client.make_wsgi_app(_WithoutCreated(registry))
    # Side by side pages are made no sooner, and calls get the interpreter between as many threads.
    one_at_a_time = threading.Lock()

    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not _is_understood(environ.get("HTTP_ACCEPT", "")):
            environ["HTTP_ACCEPT"] = ""  # which stands for the format that everybody reads
        try:
            with one_at_a_time:
                answer: Iterable[bytes] = app(environ, start_response)
        except Exception:
            log.exception("the page of metrics failed")
            start_response("500 Internal Server Error", [])
            return [b""]
        return answer

    return page


def _is_understood(accept: str) -> bool:
    """Return whether prometheus_client takes the header; it fails at versions that are no numbers."""
    try:
        choose_encoder(accept)
    except Exception:  # noqa: BLE001 (whatever it is, it is the peer's, who must not fill our log)
        return False
    return True
