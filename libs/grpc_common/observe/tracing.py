"""Traces of calls with OpenTelemetry, exported over OTLP.

Only this module, exceptions.py, exporter.py and unsampled.py import OpenTelemetry; import it where tracing
is enabled.
"""

import os
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, cast

import grpc
from grpc_health.v1 import health
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from grpc_common.core.calls import Call, CallObserver, Metadata
from grpc_common.core.errors import StartError
from grpc_common.observe import otel_variables
from grpc_common.observe.ambient import client_tracing
from grpc_common.observe.exceptions import record
from grpc_common.observe.exporter import Exporter, otlp_exporter
from grpc_common.observe.unsampled import Ids, Unsampled

# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/: a server's span is an error by these codes only,
# a client's by every code but OK.
_SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Tracing:
    """Makes the spans of a program and exports them; `start_tracing` returns it, and a server owns it.

    A service's own spans come from `provider`, or from OpenTelemetry's `trace.get_tracer` after
    `trace.set_tracer_provider(tracing.provider)`.
    """

    def __init__(self, resource: Resource, sampling_rate: float) -> None:
        self._ratio = _Ratio(sampling_rate)
        # At exit OpenTelemetry would wait for up to 30 s, whatever bound `shutdown` was given.
        ids = Ids()
        self.provider = TracerProvider(
            ParentBased(self._ratio), resource, shutdown_on_exit=False, id_generator=ids
        )
        names = otel_variables.words(os.environ.get("OTEL_TRACES_EXPORTER") or "otlp")
        self._exporter = Exporter(otlp_exporter()) if "otlp" in names else None
        if self._exporter:
            self.provider.add_span_processor(BatchSpanProcessor(self._exporter))
        if "console" in names:
            self.provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stdout)))
        propagators = _propagators()
        self.propagator = _propagator(propagators)
        self.unsampled = Unsampled(propagators, ids, self._ratio.sampler)
        self.tracer = self.provider.get_tracer("grpc_common")

    def server_observer(self) -> CallObserver:
        """Return what makes a span of each call of a server."""
        return ServerTracing(self)

    def client_observer(self) -> CallObserver:
        """Return what makes a span of each call of a channel."""
        return ClientTracing(self)

    def set_sampling_rate(self, rate: float) -> None:
        """Sample the share `rate`, 0 to 1, of the traces that begin here; others follow their parent."""
        self._ratio.sampler = self.unsampled.sampler = TraceIdRatioBased(rate)

    def shutdown(self, timeout: float = 5) -> None:
        """Export what has ended, and make no more spans; give up after `timeout` seconds.

        It blocks. The default leaves a pod most of Kubernetes' 30 s for its calls.
        """
        flush = threading.Thread(target=self._flush, daemon=True)
        flush.start()
        flush.join(timeout)
        if flush.is_alive() and self._exporter:
            self._exporter.give_up()

    def _flush(self) -> None:
        self.provider.shutdown()
        if self._exporter:
            self._exporter.unmute()


def start_tracing(*, service_name: str, sampling_rate: float) -> Tracing:
    """Begin to export spans to the collector that the variables OTEL_EXPORTER_OTLP_* name.

    Without them it is http://localhost:4317. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES overrule
    `service_name` and what else describes the process; POD_NAME and POD_NAMESPACE are added to it.
    Call otel_variables.check first: importing this module already reads variables.

    Args:
        service_name: the resource's service.name.
        sampling_rate: the share of traces, 0 to 1, that is sampled if it begins here.

    Raises:
        StartError: a variable OTEL_* can't be used.

    """
    described = {
        "service.name": service_name,
        "k8s.pod.name": os.environ.get("POD_NAME"),
        "k8s.namespace.name": os.environ.get("POD_NAMESPACE"),
    }
    resource = Resource.create({key: value for key, value in described.items() if value})
    try:
        return Tracing(resource.merge(OTELResourceDetector().detect()), sampling_rate)
    except StartError:
        raise
    except Exception as error:  # noqa: BLE001 (OpenTelemetry has no class for its errors)
        names = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
        raise StartError(f"tracing can't start: {error}; its environment variables are {names}") from None


class _Ratio(Sampler):
    """Samples by a rate that can change."""

    def __init__(self, rate: float) -> None:
        self.sampler = TraceIdRatioBased(rate)

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return self.sampler.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        return self.sampler.get_description()


class _MetadataGetter(Getter[Metadata]):
    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        return [cast("str", value) for name, value in carrier if name == key.lower()] or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name for name, _value in carrier]


class _MetadataSetter(Setter[Metadata]):
    def set(self, carrier: Metadata, key: str, value: str) -> None:
        key = key.lower()  # gRPC takes no other names, and some propagators write X-B3-TraceId
        # A service that forwards its caller's metadata would send two of them.
        carrier[:] = [(name, old) for name, old in carrier if name != key]
        carrier.append((key, value))


def _propagators() -> list[str]:
    """Return what OTEL_PROPAGATORS names; OpenTelemetry itself reads it once a process, when imported."""
    names = otel_variables.words(os.environ.get("OTEL_PROPAGATORS") or "tracecontext,baggage")
    return [] if "none" in names else list(names)


def _propagator(names: Sequence[str]) -> TextMapPropagator:
    found = {plugin.name: plugin for plugin in entry_points(group="opentelemetry_propagator")}
    return CompositePropagator([found[name].load()() for name in names])


_NO_PARENT = otel_context.Context()

_getter = _MetadataGetter()
_setter = _MetadataSetter()


def _start(tracing: Tracing, call: Call, kind: SpanKind, parent: otel_context.Context) -> Span:
    method = call.method
    attributes = {"rpc.system": "grpc", "rpc.service": method.service, "rpc.method": method.name}
    span = tracing.tracer.start_span(f"{method.service}/{method.name}", parent, kind, attributes)
    if span.get_span_context().is_valid:  # it is not with OTEL_SDK_DISABLED=true
        call.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        call.sampled = span.get_span_context().trace_flags.sampled
    return span


def _end(span: Span, code: grpc.StatusCode | None, *, error: bool) -> None:
    assert code is not None
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if error:
        span.set_status(Status(StatusCode.ERROR, code.name))
    span.end()


class ServerTracing:
    """Makes a span of each call of a server, below the caller's span if it sent one (`CallObserver`).

    In the context of the call the span is the current one, and the calls that the handler makes are traced
    too. Health checks have no span: probes come every few seconds, and a watch is as long as its connection.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._client_observer = tracing.client_observer()
        self._spans: dict[Call, Span] = {}

    def started(self, call: Call) -> None:
        """Begin the span, the current one in the task of the call; `call.trace_id` tells its trace."""
        if call.method.service == health.SERVICE_NAME:
            return
        parent = _NO_PARENT
        unsampled = self._tracing.unsampled.span_of(call.metadata)
        span: Span
        if unsampled is None:
            parent = self._tracing.propagator.extract(call.metadata, parent, _getter)
            span = self._spans[call] = _start(self._tracing, call, SpanKind.SERVER, parent)
        else:
            span, call.trace_id = unsampled, f"{unsampled.trace_id:032x}"
        otel_context.attach(trace.set_span_in_context(span, parent))
        client_tracing.set(self._client_observer)

    def ended(self, call: Call) -> None:
        """End the span."""
        span = self._spans.pop(call, None)
        if span is not None and span.is_recording():
            if call.error is not None:
                record(span, call.error)
            _end(span, call.code, error=call.code in _SERVER_ERRORS)


class ClientTracing:
    """Makes a span of each call of a client and sends its context with the call (`CallObserver`)."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._spans: dict[Call, Span] = {}

    def started(self, call: Call) -> None:
        """Begin the span below the caller's current one; `call.trace_id` tells its trace."""
        parent = otel_context.get_current()
        unsampled = self._tracing.unsampled.span_below(parent)
        span: Span
        if unsampled is None:
            span = _start(self._tracing, call, SpanKind.CLIENT, parent)
            span.set_attribute("server.address", call.peer)
        else:
            span, call.trace_id = unsampled, f"{unsampled.trace_id:032x}"
        self._tracing.propagator.inject(call.metadata, trace.set_span_in_context(span, parent), _setter)
        self._spans[call] = span

    def ended(self, call: Call) -> None:
        """End the span."""
        _end(self._spans.pop(call), call.code, error=call.code is not grpc.StatusCode.OK)
