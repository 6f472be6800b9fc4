"""Metrics of calls for Prometheus, under the names that dashboards know from go-grpc-middleware.

They are in prometheus_client's default registry, beside the process's own.
"""

import copy
import functools
import io
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Literal, override
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import grpc
import prometheus_client
import structlog
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from grpc_common.core.calls import Call, CallType, Method
from grpc_common.core.sockets import connections
from grpc_common.observe import writer

log = structlog.get_logger()

UNKNOWN_METHOD = Method("unknown", "unknown", CallType.UNARY)
"""Stands for every method that a caller asks for and that does not exist: callers must not make labels."""

# Seconds; DefBuckets of Prometheus' Go client, which go-grpc-middleware takes too: services in Go and in
# Python can be added up in one histogram_quantile().
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_LABELS = ("grpc_type", "grpc_service", "grpc_method")


def _go_name(code: grpc.StatusCode) -> str:
    """Return `code` as Go, and so every dashboard, spells it: "OK", "NotFound", "Canceled"."""
    if code is grpc.StatusCode.OK:
        return "OK"
    return code.name.title().replace("_", "").replace("Cancelled", "Canceled")


class _MethodMetrics:
    """The metrics of one method; prometheus_client takes longer to find them than to count."""

    def __init__(self, metrics: CallMetrics, method: Method) -> None:
        self._handled = metrics.handled
        self._labels = labels = (method.type.value, method.service, method.name)
        self._codes: dict[grpc.StatusCode, prometheus_client.Counter] = {}
        self.started = metrics.started_total.labels(*labels)
        self.in_flight = metrics.in_flight.labels(*labels)
        self.handling = metrics.handling.labels(*labels)
        self.messages = {name: counter.labels(*labels) for name, counter in metrics.messages.items()}

    def handled(self, code: grpc.StatusCode) -> prometheus_client.Counter:
        if code not in self._codes:
            self._codes[code] = self._handled.labels(*self._labels, _go_name(code))
        return self._codes[code]


class CallMetrics:
    """Counts the calls of all servers, or of all channels, of the process.

    It observes calls (`CallObserver`). There is one a side: `server_metrics` and `client_metrics` have it.
    """

    def __init__(self, side: Literal["server", "client"]) -> None:
        def counter(name: str, text: str, *labels: str) -> prometheus_client.Counter:
            return prometheus_client.Counter(f"grpc_{side}_{name}", text, (*_LABELS, *labels))

        self.started_total = counter("started", f"Calls that began on the {side}.")
        self.handled = counter("handled", f"Calls that ended on the {side}, by status.", "grpc_code")
        self.messages = {
            "received": counter("msg_received", f"Messages that the {side} received."),
            "sent": counter("msg_sent", f"Messages that the {side} sent."),
        }
        self.handling = prometheus_client.Histogram(
            f"grpc_{side}_handling_seconds",
            f"Seconds from the begin of a call to its end on the {side}.",
            _LABELS,
            buckets=_BUCKETS,
        )
        self.in_flight = prometheus_client.Gauge(
            f"grpc_{side}_in_flight", f"Calls that began on the {side} and have not ended.", _LABELS
        )
        self._methods: dict[Method, _MethodMetrics] = {}

    def started(self, call: Call) -> None:
        """Count a call that begins."""
        metrics = self._of(call.method)
        metrics.started.inc()
        metrics.in_flight.inc()

    def ended(self, call: Call) -> None:
        """Count a call that has ended."""
        assert call.code is not None
        metrics = self._of(call.method)
        metrics.in_flight.dec()
        metrics.handled(call.code).inc()
        metrics.handling.observe(call.elapsed)

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
        count = self._of(method).messages[direction].inc

        def counting(message: Any) -> Any:
            result = message if function is None else function(message)
            count()
            return result

        return counting

    def _of(self, method: Method) -> _MethodMetrics:
        metrics = self._methods.get(method)
        if metrics is None:
            metrics = self._methods[method] = _MethodMetrics(self, method)
        return metrics


@functools.cache
def server_metrics() -> CallMetrics:
    """Return the metrics `grpc_server_*` of this process."""
    return CallMetrics("server")


@functools.cache
def client_metrics() -> CallMetrics:
    """Return the metrics `grpc_client_*` of this process."""
    return CallMetrics("client")


@functools.cache
def _connections() -> prometheus_client.Gauge:
    return prometheus_client.Gauge(
        "grpc_server_connections", "Established TCP connections of a port that serves gRPC.", ["port"]
    )


def count_connections(port: int) -> Callable[[], None]:
    """Have `grpc_server_connections{port="..."}` tell the connections of `port`; return what ends it.

    They are counted when the page is read; always 0 where there is no /proc.
    """
    gauge = _connections()
    gauge.labels(port).set_function(lambda: len(connections(port)))
    return lambda: gauge.remove(port)


class _LogLines(Collector):
    @override
    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Lines of the log that could not be written, by reason."
        dropped = CounterMetricFamily("grpc_log_lines_dropped", text, labels=["reason"])
        for reason, count in list(writer.lines.dropped.items()):
            dropped.add_metric([reason], count)
        yield dropped


@functools.cache
def _count_log_lines() -> None:
    prometheus_client.REGISTRY.register(_LogLines())


def serve_metrics(port: int) -> tuple[int, Callable[[], None]]:
    """Serve the default registry over HTTP at every path, from a thread of its own.

    It listens on all interfaces, over IPv4, and over IPv6 where the machine has it. Port 0 takes a free one.

    Returns:
        The port, and a function that stops serving.

    Raises:
        OSError: the port can't be bound.

    """
    _count_log_lines()
    server = _HttpServer(port)
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


_page_of_registry = prometheus_client.make_wsgi_app(_WithoutCreated(prometheus_client.REGISTRY))


def _page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    try:
        page: Iterable[bytes] = _page_of_registry(environ, start_response)
    except Exception:
        log.exception("the page of metrics failed")
        start_response("500 Internal Server Error", [])
        return [b""]
    return page


class _Request(WSGIRequestHandler):
    timeout = 30
    """Seconds that a client may take to ask, or to read some of the page."""

    def log_message(self, *_arguments: object) -> None:
        """Log nothing: the log is for the service."""

    def get_stderr(self) -> io.StringIO:
        """Have the base class print its tracebacks nowhere; what fails on our side is logged by us."""
        return io.StringIO()


class _HttpServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = (
        128  # with the 5 of the base class a few slow clients keep Prometheus waiting for seconds
    )
    allow_reuse_port = False  # or two programs share a port in silence
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int) -> None:
        super().__init__(("", port), _Request)
        self.set_app(_page)

    def server_bind(self) -> None:
        """Take IPv4 as well, and ask nobody for this machine's name, as the base class does."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "metrics", self.server_address[1]
        self.setup_environ()

    def handle_error(self, _request: object, _address: object) -> None:
        """Say nothing of a client that goes away or sends garbage; a traceback would be printed."""
