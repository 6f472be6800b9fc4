"""Calls of traces that are not kept: decided before OpenTelemetry is asked, which makes a span for each.

Only the calls and spans below see what it would make. They see the same here, made when they ask for it.
"""

import random
import re
import threading
from collections.abc import Collection
from typing import override

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from grpc_common.core.calls import Metadata

_FIELDS = frozenset({"traceparent", "tracestate", "baggage"})
"""Names of the metadata that W3C's propagators read."""

_UNSAMPLED = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-00")
"""The usual `traceparent` of a trace that is not kept: https://www.w3.org/TR/trace-context/."""

_LAST_64_BITS = TraceIdRatioBased.TRACE_ID_LIMIT


class Ids(RandomIdGenerator):
    """Generates ids; a trace whose fate is decided has its id before."""

    def __init__(self) -> None:
        self._next = threading.local()

    def decide(self, trace_id: int) -> None:
        """Give the next trace that begins in this thread an id."""
        self._next.trace_id = trace_id

    @override
    def generate_trace_id(self) -> int:
        trace_id: int = getattr(self._next, "trace_id", 0)
        self._next.trace_id = 0
        return trace_id or super().generate_trace_id()


class UnsampledSpan(NonRecordingSpan):
    """A span that is not kept, as what is below it sees it."""

    def __init__(self, trace_id: int, flags: TraceFlags) -> None:
        self.trace_id = trace_id
        self.flags = flags
        self._span_id = random.getrandbits(64) or 1
        self._made: SpanContext | None = None

    @override
    def get_span_context(self) -> SpanContext:
        if self._made is None:
            self._made = SpanContext(self.trace_id, self._span_id, False, self.flags)  # noqa: FBT003 (its own)
        return self._made

    @override
    def __repr__(self) -> str:
        return f"UnsampledSpan({self.get_span_context()!r})"


class Unsampled:
    """Decides by what OpenTelemetry's ParentBased and TraceIdRatioBased decide by.

    Args:
        propagators: the names of those that are in use, as in OTEL_PROPAGATORS.
        ids: of the provider, which is told those of traces that are kept.
        sampler: for traces that begin here.

    """

    def __init__(self, propagators: Collection[str], ids: Ids, sampler: TraceIdRatioBased) -> None:
        self.sampler = sampler
        self._ids = ids
        self._is_w3c = {*propagators} <= {"tracecontext", "baggage"}
        self._reads_traceparent = "tracecontext" in propagators
        probe = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False, id_generator=ids).get_tracer("grpc_common")
        flags = probe.start_span("probe").get_span_context().trace_flags
        self._root_flags = TraceFlags(flags)
        self._is_enabled = not isinstance(probe, trace.NoOpTracer)  # as OTEL_SDK_DISABLED=true makes it

    def span_of(self, metadata: Metadata) -> UnsampledSpan | None:
        """Return the span of a server's call that is not kept, and None if it may be."""
        if not (self._is_w3c and self._is_enabled):
            return None
        found: str | bytes | None = None
        for name, value in metadata:
            if name in _FIELDS:
                if found is not None or name != "traceparent" or not self._reads_traceparent:
                    return None
                found = value
        return self._root() if found is None else self._child_of(found)

    def span_below(self, context: otel_context.Context) -> UnsampledSpan | None:
        """Return the span of a client's call that is not kept, and None if it may be."""
        parent = trace.get_current_span(context)
        if isinstance(parent, UnsampledSpan):
            return UnsampledSpan(parent.trace_id, parent.flags)
        return self._root() if parent is trace.INVALID_SPAN and self._is_enabled else None

    def _root(self) -> UnsampledSpan | None:
        trace_id = random.getrandbits(128) or 1
        if trace_id & _LAST_64_BITS >= self.sampler.bound:
            return UnsampledSpan(trace_id, self._root_flags)
        self._ids.decide(trace_id)
        return None

    def _child_of(self, traceparent: str | bytes) -> UnsampledSpan | None:
        match = _UNSAMPLED.fullmatch(traceparent) if isinstance(traceparent, str) else None
        return UnsampledSpan(int(match[1], 16), trace.DEFAULT_TRACE_OPTIONS) if match else None
