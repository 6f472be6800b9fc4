"""Spans of real servers: the calls', those of services, and what they tell of exceptions."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import prometheus_client
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from grpc_common.core.errors import StatusError
from grpc_common.server.server import Server
from grpc_common.testing import configure

CANARY = "s3cr3t"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(autouse=True)
def _export_nothing(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")


class Traced:
    """A server of one method, `test.Own/Call`, and the spans that it has made."""

    def __init__(self, rate="1", service="test", **settings):
        environ = {"METRICS_ENABLED": "true", "METRICS_PORT": "0"}
        environ |= {"TRACING_ENABLED": "true", "TRACING_SAMPLING_RATE": rate, "TRACING_SERVICE_NAME": service}
        self.registry = CollectorRegistry()
        self.server = Server(configure(**environ | settings), registry=self.registry)
        self.exporter = InMemorySpanExporter()
        self.server.tracing.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.server.tracing.provider.get_tracer("own")

    @asynccontextmanager
    async def serving(self, handler, kind=grpc.unary_unary_rpc_method_handler):
        """Serve `handler`; yield the method to call."""

        def add(_servicer, server):
            server.add_generic_rpc_handlers(
                [grpc.method_handlers_generic_handler("test.Own", {"Call": kind(handler)})]
            )

        self.server.add(None, add)
        async with (
            self.server.serving() as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            yield channel.unary_unary("/test.Own/Call")

    @property
    def spans(self):
        """The spans that have ended, by name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def events(self):
        """Return the attributes of the events of the call's span."""
        return [dict(event.attributes) for event in self.spans["test.Own/Call"].events]


async def failing(error, **settings):
    """Have a handler raise `error`; return the events of the call's span."""
    traced = Traced(**settings)

    async def fail(_request, _context):
        raise error

    async with traced.serving(fail) as call:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"", timeout=10)
    return traced.events()


async def test_unexpected_exception_is_on_the_span():
    """Its type and where it was raised are told; its text, which may be secret, is not."""
    (event,) = await failing(ValueError(CANARY))
    assert event["exception.type"] == "ValueError"
    assert ", in fail\n    raise error" in event["exception.stacktrace"]
    assert CANARY not in str(event)


async def test_text_of_a_cause_is_not_on_the_span():
    """Neither are the texts of what an exception came from."""
    error = KeyError("outer")
    error.__cause__ = ValueError(CANARY)
    error.add_note(CANARY)
    (event,) = await failing(error)
    assert CANARY not in str(event)


async def test_status_is_on_the_span_by_code_and_message():
    """A StatusError is no bug: no traceback."""
    (event,) = await failing(StatusError(grpc.StatusCode.NOT_FOUND, "no user 7"))
    assert event == {"exception.type": "StatusError", "exception.message": "NOT_FOUND: no user 7"}


async def test_group_is_on_the_span_one_by_one():
    """Of the exceptions of a TaskGroup each has its event, and there are never many."""
    group = ExceptionGroup("tasks", [ValueError(), ExceptionGroup("more", [OSError()])])
    assert [event["exception.type"] for event in await failing(group)] == ["ValueError", "OSError"]
    assert len(await failing(ExceptionGroup("tasks", [ValueError()] * 100))) == 5


async def test_exception_whose_text_fails_is_on_the_span():
    """A class of errors with a bug of its own changes nothing."""

    class Broken(Exception):  # noqa: N818
        def __str__(self):
            raise ValueError

    (event,) = await failing(Broken())
    assert event["exception.type"].endswith("Broken")


async def test_recursion_is_short_on_the_span():
    """A traceback of a thousand frames is cut."""
    traced = Traced()

    async def dive(request, context):
        return await dive(request, context)

    async with traced.serving(dive) as call:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"", timeout=20)
    (event,) = traced.events()
    assert event["exception.type"] == "RecursionError"
    assert len(event["exception.stacktrace"]) < 10_000


async def test_abort_and_set_code_are_on_the_span():
    """What a servicer says through its context is told as a StatusError is."""

    async def abort(_request, context):
        await context.abort(grpc.StatusCode.ABORTED, "as asked")

    async def set_code(_request, context):
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("lost")

    for handler, expected in ((abort, "ABORTED: as asked"), (set_code, "DATA_LOSS: lost")):
        traced = Traced()
        async with traced.serving(handler) as call:
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"", timeout=10)
        assert [event["exception.message"] for event in traced.events()] == [expected]


async def test_deadline_is_on_the_span():
    """A call that the server ends by itself says why."""
    traced = Traced(DEFAULT_DEADLINE="50ms")

    async def hang(_request, _context):
        await asyncio.Event().wait()

    async with traced.serving(hang) as call:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"")
    (event,) = traced.events()
    assert event["exception.message"].startswith("DEADLINE_EXCEEDED: the call took longer than 50ms")


async def test_success_has_no_event():
    """A call that has not failed has no exception."""
    traced = Traced()

    async def echo(request, _context):
        return request

    async with traced.serving(echo) as call:
        await call(b"", timeout=10)
    assert traced.events() == []


@pytest.mark.parametrize("plain", [False, True], ids=["coroutine", "function"])
async def test_service_makes_spans_of_its_own(plain):
    """A span that a handler makes with the server's provider is below the call's span, in a thread too."""
    traced = Traced()

    def work():
        with traced.tracer.start_as_current_span("query"):
            return b""

    async def handler(_request, _context):
        return work()

    def function(_request, _context):
        return work()

    async with traced.serving(function if plain else handler) as call:
        await call(b"", timeout=10)
    query, own = traced.spans["query"], traced.spans["test.Own/Call"]
    assert query.parent.span_id == own.context.span_id
    assert query.context.trace_id == own.context.trace_id
    assert query.resource.attributes["service.name"] == "test"


async def test_two_servers_do_not_take_each_other_s_provider():
    """Spans of each server, and of its service, go where that server's go, and no provider is global."""
    before = trace.get_tracer_provider()
    first, second = Traced(service="first"), Traced(service="second")

    def handler_of(traced, name):
        async def handler(_request, _context):
            with traced.tracer.start_as_current_span(name):
                return b""

        return handler

    async with (
        first.serving(handler_of(first, "one")) as call_first,
        second.serving(handler_of(second, "two")) as call_second,
    ):
        await asyncio.gather(call_first(b"", timeout=10), call_second(b"", timeout=10))
    assert set(first.spans) == {"test.Own/Call", "one"}
    assert set(second.spans) == {"test.Own/Call", "two"}
    assert {span.resource.attributes["service.name"] for span in first.spans.values()} == {"first"}
    assert {span.resource.attributes["service.name"] for span in second.spans.values()} == {"second"}
    assert trace.get_tracer_provider() is before


async def exemplars(metadata=(), rate="1"):
    """Make a call; return the exemplars of its histogram, as a reader of OpenMetrics parses the page."""
    traced = Traced(rate=rate)

    async def echo(request, _context):
        return request

    async with traced.serving(echo) as call:
        await call(b"", metadata=metadata, timeout=10)
        page = generate_latest(traced.registry).decode()
        assert "trace_id" not in prometheus_client.generate_latest(traced.registry).decode()
    return [
        sample.exemplar.labels
        for family in text_string_to_metric_families(page)
        if family.name == "grpc_server_handling_seconds"
        for sample in family.samples
        if sample.exemplar
    ]


async def test_exemplar_leads_to_the_trace():
    """A sampled call leaves its trace's id in the histogram, for OpenMetrics alone."""
    metadata = [("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01")]
    assert await exemplars(metadata, rate="0") == [{"trace_id": TRACE_ID}]


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE_ID}-00f067aa0ba902b7-00",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f'00-{TRACE_ID[:-1]}"-00f067aa0ba902b7-01',
        "x" * 1000,
    ],
    ids=["unsampled", "zeros", "no hexadecimal", "garbage"],
)
async def test_no_exemplar_without_a_trace_that_is_kept(traceparent):
    """A trace that is not sampled, or that only a bad header names, leaves none."""
    assert await exemplars([("traceparent", traceparent)], rate="0") == []
