"""What is decided before OpenTelemetry is asked is what it would have decided."""

import contextvars

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from grpc_common.core.calls import Call, CallType, Method
from grpc_common.observe.tracing import Tracing
from grpc_common.observe.unsampled import UnsampledSpan

METHOD = Method("test.Own", "Call", CallType.UNARY)
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
HEADERS = {
    "traceparent": [
        f"00-{TRACE_ID}-{SPAN_ID}-00",
        f"00-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-02",
        f" 00-{TRACE_ID}-{SPAN_ID}-00 ",
        f"01-{TRACE_ID}-{SPAN_ID}-00-more",
        f"00-{TRACE_ID}-{SPAN_ID}-00-more",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-00",
        f"00-{'0' * 32}-{SPAN_ID}-00",
        f"00-{TRACE_ID}-{'0' * 16}-00",
        "",
        "x" * 600,
    ],
    "tracestate": ["a=1", "a=1,b=2", "garbage"],
    "baggage": ["tenant=blue", "%"],
    "user-agent": ["grpc-go/1"],
    "b3": [f"{TRACE_ID}-{SPAN_ID}-1"],
}
PROPAGATORS = ["", "tracecontext", "baggage", "baggage,tracecontext", "none"]
header = st.sampled_from([(name, value) for name, values in HEADERS.items() for value in values])


@pytest.fixture(scope="module", params=PROPAGATORS)
def tracings(request):
    """Return the propagators and two tracings with rate 0; the second one asks OpenTelemetry each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_EXPORTER", "none")
        patch.setenv("OTEL_PROPAGATORS", request.param)
        ours, theirs = Tracing(Resource.create(), 0), Tracing(Resource.create(), 0)
    theirs.unsampled.span_of = theirs.unsampled.span_below = lambda _asked: None
    return request.param, ours, theirs


def seen_in(tracing, metadata):
    """Return what a handler, and a service that it calls, see of a call's trace."""
    server, client = tracing.server_observer(), tracing.client_observer()
    call, below = Call(METHOD, metadata), Call(METHOD)
    server.started(call)
    span = trace.get_current_span()
    context = span.get_span_context()
    client.started(below)
    assert call.trace_id == trace.format_trace_id(context.trace_id)
    assert below.trace_id == call.trace_id
    is_root = not any(TRACE_ID in str(value) for _name, value in metadata)
    sent = [
        (name, value.replace(call.trace_id, "").split("-")[-1] if name == "traceparent" else value)
        for name, value in below.metadata
    ]
    trace_id = context.trace_id if call.trace_id == TRACE_ID else is_root
    flags = (context.is_valid, context.is_remote, int(context.trace_flags), dict(context.trace_state))
    assert context.span_id != int(SPAN_ID, 16)
    return trace_id, flags, span.is_recording(), call.sampled, below.sampled, sent, dict(baggage.get_all())


@given(st.lists(header, max_size=4))
def test_what_is_seen_is_what_opentelemetry_makes(tracings, metadata):
    """Ids, flags, state and baggage in the handler, and what it passes on, whatever the caller has sent."""
    ours, theirs = (contextvars.Context().run(seen_in, each, list(metadata)) for each in tracings[1:])
    assert ours == theirs


def test_usual_calls_make_no_span(tracings):
    """Without a trace of the caller's, or below one that is not kept, OpenTelemetry is not asked."""
    propagators, ours, _ = tracings
    assert isinstance(ours.unsampled.span_of([("user-agent", "x")]), UnsampledSpan)
    span = ours.unsampled.span_of([("traceparent", HEADERS["traceparent"][0])])
    assert isinstance(span, UnsampledSpan) == (propagators not in {"baggage", "none"})


def test_share_of_traces_is_sampled_with_their_ids(monkeypatch):
    """What is decided holds for the span: the rate is not applied twice, and the ids are as decided."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    tracing = Tracing(Resource.create(), 0.5)
    exporter = InMemorySpanExporter()
    tracing.provider.add_span_processor(SimpleSpanProcessor(exporter))
    observer = tracing.client_observer()

    def call():
        made = Call(METHOD, code=grpc.StatusCode.OK)
        observer.started(made)
        observer.ended(made)
        return made

    calls = [contextvars.Context().run(call) for _ in range(400)]
    kept = [made.trace_id for made in calls if made.sampled]
    assert 100 < len(kept) < 300  # 14 standard deviations
    assert all(made.sampled == (int(made.trace_id[16:], 16) < 1 << 63) for made in calls)
    spans = exporter.get_finished_spans()
    assert [trace.format_trace_id(span.context.trace_id) for span in spans] == kept


def test_span_of_the_program_is_not_given_a_decided_id(monkeypatch):
    """An id is for the span of its call: one that the program begins after it has another."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    tracing = Tracing(Resource.create(), 1)
    observer, call = tracing.server_observer(), Call(METHOD)
    contextvars.copy_context().run(observer.started, call)
    own = tracing.provider.get_tracer("own").start_span(
        "own", context=trace.set_span_in_context(trace.INVALID_SPAN)
    )
    assert call.sampled
    assert trace.format_trace_id(own.get_span_context().trace_id) != call.trace_id


def test_disabled_sdk_decides_nothing(monkeypatch):
    """With OTEL_SDK_DISABLED=true there are no ids, in logs neither."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = Tracing(Resource.create(), 0)
    for observer in (tracing.server_observer(), tracing.client_observer()):
        call = Call(METHOD)
        contextvars.Context().run(observer.started, call)
        assert call.trace_id == ""
