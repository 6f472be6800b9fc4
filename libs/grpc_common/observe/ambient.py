"""How the calls that a handler makes find the tracing of the server that runs it, without OpenTelemetry."""

from contextvars import ContextVar

from grpc_common.core.calls import Call, CallObserver

client_tracing: ContextVar[CallObserver | None] = ContextVar("client_tracing", default=None)
"""What traces the calls that are made in this context; a server sets it in that of each of its own calls."""


class AmbientTracing:
    """Traces each call of a channel as the context says in which it is made (`CallObserver`)."""

    def __init__(self) -> None:
        self._tracings: dict[Call, CallObserver] = {}

    def started(self, call: Call) -> None:
        """Begin a span if the call is made where calls are traced."""
        tracing = client_tracing.get()
        if tracing is not None:
            self._tracings[call] = tracing
            tracing.started(call)

    def ended(self, call: Call) -> None:
        """End the span, which may happen in another context."""
        tracing = self._tracings.pop(call, None)
        if tracing is not None:
            tracing.ended(call)
