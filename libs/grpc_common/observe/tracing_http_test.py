import gzip
import queue
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from grpc_common.core.errors import StartError
from grpc_common.observe.setup import start_tracing


@pytest.fixture
def collector(monkeypatch):
    """Run a collector over HTTP to which this process exports; the value has the requests: (path, span)."""
    requests = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            (batch,) = ExportTraceServiceRequest.FromString(body).resource_spans
            requests.put((self.path, batch.scope_spans[0].spans[0].name, self.headers.get("X-Key")))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments):
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    requests.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", requests.address)
    yield requests
    server.shutdown()
    thread.join()
    server.server_close()


def export():
    """Export the span "work"."""
    tracing = start_tracing(service_name="test", sampling_rate=1)
    with tracing.tracer.start_as_current_span("work"):
        """Do nothing."""
    tracing.shutdown()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_spans_are_exported_over_http(collector, monkeypatch, compression):
    """With http/protobuf the collector gets the spans at the path for traces, with the headers."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=value")
    export()
    assert collector.get(timeout=10) == ("/v1/traces", "work", "value")


def test_endpoint_of_traces_alone_is_taken_as_it_is(collector, monkeypatch):
    """Its path is the collector's own."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.address}/own/path")
    export()
    assert collector.get(timeout=10)[0] == "/own/path"


def test_collector_that_is_gone_holds_nothing_up(collector, monkeypatch):
    """The end waits no longer than it may."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9")
    tracing = start_tracing(service_name="test", sampling_rate=1)
    tracing.tracer.start_span("work").end()
    start = time.monotonic()
    tracing.shutdown(0.5)
    assert time.monotonic() - start < 5
    assert collector.empty()


@pytest.mark.parametrize(
    ("protocol", "extra", "package"),
    [("http/protobuf", "tracing-http", "http"), ("grpc", "tracing", "grpc")],
)
def test_missing_extra_is_explained(monkeypatch, protocol, extra, package):
    """Whoever asks for a protocol that is not installed learns what has it, for Bazel and for pip."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setitem(sys.modules, f"opentelemetry.exporter.otlp.proto.{package}.trace_exporter", None)
    with pytest.raises(StartError, match=f"traces over {protocol} need") as caught:
        start_tracing(service_name="test", sampling_rate=1)
    assert f"//libs/grpc_common:{extra.replace('-', '_')}," in str(caught.value)
    assert f"grpc-on-kubernetes-common[{extra}]" in str(caught.value)
