"""Trace contexts that callers send; those that are not kept are read without asking OpenTelemetry."""

from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from grpc_common.observe.unsampled import Ids, Unsampled

_unsampled = Unsampled({"tracecontext", "baggage"}, Ids(), TraceIdRatioBased(1.0))
_theirs = TraceContextTextMapPropagator()


def fuzz(data: bytes) -> None:
    """What is read the short way is what OpenTelemetry reads the long way."""
    text = data.decode("latin-1")
    span = _unsampled.span_of([("traceparent", text)])
    if span is None:
        return
    context = trace.get_current_span(_theirs.extract({"traceparent": text})).get_span_context()
    assert context.is_valid
    assert not context.trace_flags.sampled
    assert span.get_span_context().trace_id == context.trace_id
    assert not span.get_span_context().trace_flags.sampled
