import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import grpc
import pytest
import structlog
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry import baggage, trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace.propagation import tracecontext as trace_context

from grpc_common import Server
from grpc_common.client.channel import channel as open_channel
from grpc_common.config.sections import ServerSection
from grpc_common.core.calls import Call, CallType, Method
from grpc_common.core.errors import StartError
from grpc_common.observe.tracing import ClientTracing, ServerTracing, start_tracing
from grpc_common.server.engine import new_server
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.testing import configure

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"
SERVER, CLIENT = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, str] = {}
        self.services: dict[bytes, str] = {}
        self.refuses = False
        self.refused = 0
        self._changed = asyncio.Condition()

    async def Export(self, request, context):  # noqa: N802 (gRPC's name)
        if self.refuses:
            self.refused += 1
            soon = RetryInfo(retry_delay=Duration(nanos=1)).SerializeToString()
            trailers = (("google.rpc.retryinfo-bin", soon),)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "out of disk", trailers)
        for batch in request.resource_spans:
            self.resource = attributes(batch.resource)
            for scope in batch.scope_spans:
                self.spans.extend(scope.spans)
                self.services |= {span.span_id: self.resource["service.name"] for span in scope.spans}
        async with self._changed:
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def take(self, count):
        """Wait for `count` spans; return them in the order in which they began, and forget them."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self.spans) >= count)
        assert len(self.spans) == count
        spans, self.spans = self.spans, []
        return sorted(spans, key=lambda span: span.start_time_unix_nano)


def attributes(described):
    """Return the attributes of a span or a resource as a dictionary."""
    return {
        pair.key: pair.value.int_value if pair.value.HasField("int_value") else pair.value.string_value
        for pair in described.attributes
    }


@pytest.fixture
async def collector(monkeypatch):
    """Run a collector that this process exports to, each span within milliseconds."""
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # milliseconds
    yield collector
    await server.stop(None)


@asynccontextmanager
async def tracing(rate=1.0):
    """Trace with the sampling rate `rate`."""
    tracing = start_tracing(service_name="test", sampling_rate=rate)
    yield tracing
    await asyncio.to_thread(tracing.shutdown)


class Echo:
    """A service with methods of all kinds, which answer what the caller's context is."""

    def __init__(self) -> None:
        self.channel: grpc.aio.Channel | None = None
        self.metadata: dict[str, str] = {}
        self.contexts: list[tuple[object, bytes]] = []
        self.hangs = asyncio.Event()

    async def unary(self, request, context):
        self.metadata = dict(context.invocation_metadata())
        trace_id = trace.get_current_span().get_span_context().trace_id
        self.contexts.append((baggage.get_baggage("tenant"), trace_id.to_bytes(16)))
        return request

    async def fail(self, request, context):
        await context.abort(grpc.StatusCode[request.decode()], "as asked")

    async def hang(self, _request, _context):
        self.hangs.set()
        await asyncio.Event().wait()

    async def relay(self, request, _context):
        return await self.channel.unary_unary("/test.Echo/Unary")(request)

    async def collect(self, requests, _context):
        return b"".join([request async for request in requests])

    async def spread(self, request, _context):
        for byte in request:
            yield await self.channel.unary_unary("/test.Echo/Unary")(bytes([byte]))

    async def chat(self, requests, _context):
        async for request in requests:
            yield request

    def add_to(self, server):
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            "Relay": grpc.unary_unary_rpc_method_handler(self.relay),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "Spread": grpc.unary_stream_rpc_method_handler(self.spread),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", methods)])


class Seen:
    """Keeps the calls that a server or a channel has seen."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def started(self, call):
        self.calls.append(call)

    def ended(self, call):
        """Do nothing."""


@asynccontextmanager
async def echo(tracing):
    """Serve Echo with spans on both sides; yield it. Its `channel` is traced, and `plain` is not."""
    service = Echo()
    service.seen = Seen()
    lifecycle = Lifecycle(ServerSection(), observers=[ServerTracing(tracing), service.seen])
    server = new_server(ServerSection(), lifecycle)
    service.add_to(server)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = f"127.0.0.1:{port}"
    async with (
        open_channel(target, observers=[ClientTracing(tracing)]) as service.channel,
        grpc.aio.insecure_channel(target) as service.plain,
    ):
        yield service
    await server.stop(None)


async def call(channel, name, metadata=()):
    """Call a method of any kind to its end."""
    path = f"/test.Echo/{name}"
    metadata = list(metadata)
    match name:
        case "Collect":
            await channel.stream_unary(path)(iter([b"a", b"b"]), metadata=metadata)
        case "Spread":
            assert [part async for part in channel.unary_stream(path)(b"a", metadata=metadata)] == [b"a"]
        case "Chat":
            parts = channel.stream_stream(path)(iter([b"a", b"b"]), metadata=metadata)
            assert [part async for part in parts] == [b"a", b"b"]
        case _:
            assert await channel.unary_unary(path)(b"a", metadata=metadata) == b"a"


@pytest.mark.parametrize("name", ["Unary", "Collect", "Chat"])
async def test_call_has_a_span_on_both_sides(collector, name):
    """The server's span is below the client's, with the attributes of the conventions for RPC."""
    async with tracing() as traces, echo(traces) as service:
        await call(service.channel, name)
        client, server = await collector.take(2)
    assert (client.kind, server.kind) == (CLIENT, SERVER)
    assert client.parent_span_id == b""
    assert server.trace_id == client.trace_id
    assert server.parent_span_id == client.span_id
    expected = {
        "rpc.system": "grpc",
        "rpc.service": "test.Echo",
        "rpc.method": name,
        "rpc.grpc.status_code": 0,
    }
    assert attributes(server) == expected
    address = attributes(client).pop("server.address")
    assert address.startswith("127.0.0.1:")
    assert attributes(client) == expected | {"server.address": address}
    for span in (client, server):
        assert span.name == f"test.Echo/{name}"
        assert span.status.code == Status.STATUS_CODE_UNSET
        assert span.start_time_unix_nano < span.end_time_unix_nano


@pytest.mark.parametrize("name", ["Relay", "Spread"])
async def test_call_that_a_handler_makes_is_below_the_handlers_span(collector, name):
    """A trace goes through a service, whether its handler is a coroutine or a generator."""
    async with tracing() as traces, echo(traces) as service:
        await call(service.channel, name)
        spans = await collector.take(4)
    assert [span.kind for span in spans] == [CLIENT, SERVER, CLIENT, SERVER]
    assert [span.parent_span_id for span in spans] == [b"", *(span.span_id for span in spans[:3])]
    assert len({span.trace_id for span in spans}) == 1


async def test_health_checks_have_no_spans(collector):
    """Neither a probe nor the watch of a balancing client is traced."""
    async with tracing() as traces, echo(traces) as service:
        request = health_pb2.HealthCheckRequest()
        await health_pb2_grpc.HealthStub(service.plain).Check(request)
        watch = health_pb2_grpc.HealthStub(service.plain).Watch(request)
        await watch.read()
        watch.cancel()
        await call(service.plain, "Unary")
        (span,) = await collector.take(1)
    assert span.name == "test.Echo/Unary"


async def test_each_call_of_an_untraced_client_is_a_trace(collector):
    """Nothing of one call's context is left for the next."""
    async with tracing() as traces, echo(traces) as service:
        await asyncio.gather(*(call(service.plain, "Unary") for _ in range(5)))
        spans = await collector.take(5)
    assert len({span.trace_id for span in spans}) == 5
    assert all(span.parent_span_id == b"" for span in spans)


async def test_span_of_the_application_is_the_parent_of_its_calls(collector):
    """A client's call is below the span that is current where it is made."""
    async with tracing() as traces, echo(traces) as service:
        tracer = traces.provider.get_tracer("test")
        with tracer.start_as_current_span("work"):
            await call(service.channel, "Unary")
            await call(service.channel, "Unary")
        work, *rest = await collector.take(5)
    assert work.name == "work"
    assert [span.parent_span_id for span in rest if span.kind == CLIENT] == [work.span_id] * 2


@pytest.mark.parametrize(
    ("code", "server_error"),
    [
        ("NOT_FOUND", False),
        ("RESOURCE_EXHAUSTED", False),
        ("CANCELLED", False),
        ("INTERNAL", True),
        ("UNAVAILABLE", True),
        ("UNIMPLEMENTED", True),
    ],
)
async def test_error_status(collector, code, server_error):
    """Any code but OK is the client's error; a server's span is one only if the server is at fault."""
    async with tracing() as traces, echo(traces) as service:
        with pytest.raises(grpc.aio.AioRpcError):
            await service.channel.unary_unary("/test.Echo/Fail")(code.encode())
        client, server = await collector.take(2)
    assert (client.status.code, client.status.message) == (Status.STATUS_CODE_ERROR, code)
    assert (server.status.code == Status.STATUS_CODE_ERROR) == server_error
    number = grpc.StatusCode[code].value[0]
    assert attributes(client)["rpc.grpc.status_code"] == number
    assert attributes(server)["rpc.grpc.status_code"] == number


async def test_cancelled_call_has_spans(collector):
    """A client that gives up ends both spans."""
    async with tracing() as traces, echo(traces) as service:
        hanging = service.channel.unary_unary("/test.Echo/Hang")(b"")
        await service.hangs.wait()
        hanging.cancel()
        client, server = await collector.take(2)
    assert attributes(client)["rpc.grpc.status_code"] == 1
    assert attributes(server)["rpc.grpc.status_code"] == 1


async def test_rate_0_makes_no_spans_and_still_sends_the_context(collector):
    """The next service learns that the trace is not sampled, and both log the same trace id."""
    async with tracing(0) as traces, echo(traces) as service:
        await call(service.channel, "Unary")
        version, trace_id, _span_id, flags = service.metadata["traceparent"].split("-")
        assert version == "00"
        assert int(flags, 16) & 1 == 0
        assert service.seen.calls[-1].trace_id == trace_id
    assert collector.spans == []


async def test_sampling_rate_changes_at_run_time(collector):
    """A new rate holds for the next trace, in both directions."""
    async with tracing(0) as traces, echo(traces) as service:
        await call(service.channel, "Unary")
        traces.set_sampling_rate(1)
        await call(service.channel, "Unary")
        await collector.take(2)
        traces.set_sampling_rate(0)
        await call(service.channel, "Unary")
    assert collector.spans == []


async def test_sampling_rate_is_the_share_of_traces(collector):
    """At 0.5 about half of the traces are sampled, each as a whole."""
    async with tracing(0.5) as traces, echo(traces) as service:
        await asyncio.gather(*(call(service.channel, "Unary") for _ in range(200)))
    counts = {span.trace_id: 0 for span in collector.spans}
    for span in collector.spans:
        counts[span.trace_id] += 1
    assert 60 < len(counts) < 140
    assert set(counts.values()) == {2}


@pytest.mark.parametrize(("rate", "traceparent", "count"), [(0, SAMPLED, 1), (1, UNSAMPLED, 0)])
async def test_decision_of_the_parent_wins(collector, rate, traceparent, count):
    """A trace is sampled by whoever began it, whatever the rate is here."""
    async with tracing(rate) as traces, echo(traces) as service:
        await call(service.plain, "Unary", [("traceparent", traceparent)])
    spans = await collector.take(count)
    assert [span.parent_span_id.hex() for span in spans] == [SPAN_ID] * count
    assert service.seen.calls[-1].trace_id == TRACE_ID


async def test_context_goes_through_a_service(collector):
    """W3C's tracestate and baggage reach the next service with the trace, sampled or not."""
    sent = [("traceparent", UNSAMPLED), ("tracestate", "vendor=1"), ("baggage", "tenant=blue%20moon")]
    async with tracing() as traces, echo(traces) as service:
        await call(service.plain, "Relay", sent)
    assert service.metadata["traceparent"].split("-")[1] == TRACE_ID
    assert service.metadata["tracestate"] == "vendor=1"
    assert service.metadata["baggage"] in {"tenant=blue+moon", "tenant=blue%20moon"}
    assert collector.spans == []


async def test_baggage_is_for_the_handler_only(collector):
    """What a caller sends is in the context of its call, and not in that of the next on the connection."""
    async with tracing() as traces, echo(traces) as service:
        for metadata in ([("baggage", "tenant=blue")], []):
            await call(service.plain, "Unary", metadata)
        first, second = [span.trace_id for span in await collector.take(2)]
    assert service.contexts == [("blue", first), (None, second)]
    assert baggage.get_baggage("tenant") is None
    assert not trace.get_current_span().is_recording()


@pytest.mark.parametrize(
    "traceparent", ["", "garbage", f"ff-{TRACE_ID}-{SPAN_ID}-01", f"00-{'0' * 32}-{SPAN_ID}-01"]
)
async def test_garbage_begins_a_trace(collector, traceparent):
    """A context that can't be read is as none."""
    async with tracing() as traces, echo(traces) as service:
        await call(service.plain, "Unary", [("traceparent", traceparent)])
        (span,) = await collector.take(1)
    assert span.parent_span_id == b""
    assert span.trace_id.hex() != TRACE_ID


async def test_forwarded_context_is_replaced(collector):
    """A service that sends its caller's metadata on sends one context, its own."""
    received = [("traceparent", SAMPLED), ("user", "ada")]
    async with tracing() as traces, echo(traces) as service:
        await call(service.channel, "Unary", received)
        client, server = await collector.take(2)
        forwarding = Call(Method("test.Echo", "Unary", CallType.UNARY), list(received))
        ClientTracing(traces).started(forwarding)
    assert server.parent_span_id == client.span_id
    assert service.metadata["user"] == "ada"
    assert [name for name, _value in forwarding.metadata] == ["user", "traceparent"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"service.name": "test"}),
        ({"OTEL_SERVICE_NAME": "users"}, {"service.name": "users"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=prod"}, {"deployment.environment": "prod"}),
        (
            {"POD_NAME": "users-7d9-x2", "POD_NAMESPACE": "shop"},
            {"k8s.pod.name": "users-7d9-x2", "k8s.namespace.name": "shop"},
        ),
    ],
    ids=["default", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "POD_NAME"],
)
async def test_resource(collector, monkeypatch, variables, expected):
    """Spans tell the service and the pod, and OpenTelemetry's own variables overrule the program."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with tracing() as traces:
        traces.tracer.start_span("work").end()
        await collector.take(1)
    assert collector.resource.items() >= expected.items()
    assert collector.resource["telemetry.sdk.language"] == "python"


def unused_port():
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def test_failing_collector_disturbs_nothing(collector, caplog):
    """Calls go on while spans can't be exported; the log tells it once, and once when they can again."""
    collector.refuses = True
    recovered = asyncio.Event()
    loop = asyncio.get_running_loop()
    events = []

    def record(_logger, _method, line):
        events.append(line["event"])
        loop.call_soon_threadsafe(recovered.set)
        raise structlog.DropEvent

    structlog.configure(processors=[record])
    async with tracing() as traces, echo(traces) as service, asyncio.timeout(30):
        while collector.refused < 20:  # three batches, each sent six times
            await call(service.channel, "Unary")
        records = [record for record in caplog.records if "opentelemetry" in record.name]
        assert [record.levelname for record in records] == ["WARNING", "ERROR"]
        assert "StatusCode.UNAVAILABLE, error details: out of disk" in records[1].getMessage()
        collector.refuses = False
        while not recovered.is_set():
            await call(service.channel, "Unary")
    structlog.reset_defaults()
    assert events == ["spans are exported again"]


class Relay:
    """A servicer that calls another server, and says which trace its own call belongs to."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def relay(self, _request, _context):
        await self._channel.unary_unary("/test.Echo/Unary")(b"")
        return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id).encode()

    def add(self, _servicer, server):
        handlers = {"Relay": grpc.unary_unary_rpc_method_handler(self.relay)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Relay", handlers)])


def traced_server(name, channel=None):
    """Return a server whose traces have this name, all of them sampled."""
    config = configure(TRACING_ENABLED="true", TRACING_SAMPLING_RATE="1", TRACING_SERVICE_NAME=name)
    server = Server(config)
    relay = Relay(channel)
    server.add(relay, relay.add)
    return server


@asynccontextmanager
async def untraced_echo():
    """Serve Echo without tracing; yield a channel to it that was opened outside of any call."""
    server, service = grpc.aio.server(), Echo()
    service.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield channel, f"127.0.0.1:{port}"
    await server.stop(None)


async def relay(port):
    """Call Relay without tracing; return its trace."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        return (await channel.unary_unary("/test.Relay/Relay")(b"")).decode()


async def test_servers_of_one_process_have_their_own_traces(collector):
    """What a handler calls is traced by the server that runs it, through a channel that both share."""
    async with untraced_echo() as (channel, _):
        first, second = traced_server("first", channel), traced_server("second", channel)
        async with first.serving() as first_port, second.serving() as second_port:
            traces = {await relay(first_port): "first", await relay(second_port): "second"}
            spans = await collector.take(4)
    assert len(traces) == 2
    assert {span.trace_id.hex() for span in spans} == set(traces)
    for span in spans:
        assert collector.services[span.span_id] == traces[span.trace_id.hex()]
    assert sorted(span.kind for span in spans) == [SERVER, SERVER, CLIENT, CLIENT]


async def test_end_of_one_server_ends_no_other_traces(collector):
    """A server exports its own last spans when it ends; others go on, and a new one can start."""
    async with untraced_echo() as (channel, _):
        async with traced_server("first", channel).serving() as first_port:
            async with traced_server("second", channel).serving() as second_port:
                await relay(second_port)
            await relay(first_port)
        async with traced_server("third", channel).serving() as third_port:
            await relay(third_port)
        spans = await collector.take(6)
    assert sorted(collector.services[span.span_id] for span in spans) == sorted(
        ["first", "second", "third"] * 2
    )


async def test_calls_outside_of_handlers(collector):
    """They are traced if the channel is given the server's tracing, and not otherwise."""
    async with untraced_echo() as (plain, target):
        server = traced_server("job")
        async with server.serving(), open_channel(target, tracing=server.tracing) as channel:
            await plain.unary_unary("/test.Echo/Unary")(b"")
            await channel.unary_unary("/test.Echo/Unary")(b"")
            (span,) = await collector.take(1)
    assert span.kind == CLIENT


@pytest.mark.parametrize(
    ("propagators", "sent"),
    [
        (None, {"traceparent", "baggage"}),
        ("", {"traceparent", "baggage"}),
        ("tracecontext", {"traceparent"}),
        (" baggage ", {"baggage"}),
        ("none", set()),
    ],
)
async def test_propagators(collector, monkeypatch, propagators, sent):
    """OTEL_PROPAGATORS says in which form the context of a call is read and sent."""
    if propagators is not None:
        monkeypatch.setenv("OTEL_PROPAGATORS", propagators)
    received = [("traceparent", SAMPLED), ("baggage", "tenant=blue")]
    async with tracing() as traces, echo(traces) as service:
        await call(service.plain, "Relay", received)
        spans = await collector.take(3)
    assert {"traceparent", "baggage"} & service.metadata.keys() == sent
    assert any(span.trace_id.hex() == TRACE_ID for span in spans) == ("traceparent" in sent)


class CaseOfB3(trace_context.TraceContextTextMapPropagator):
    """A propagator whose header has capital letters, as that of B3."""

    def inject(self, carrier, context=None, setter=None):
        del context
        setter.set(carrier, "X-B3-TraceId", "1")

    def extract(self, carrier, context=None, getter=None):
        return baggage.set_baggage("b3", getter.get(carrier, "X-B3-TraceId"), context)


async def test_capital_letters_of_a_propagator(collector):
    """GRPC knows small letters only."""
    async with tracing() as traces, echo(traces) as service:
        traces.propagator = CaseOfB3()
        await call(service.channel, "Unary")
        await collector.take(2)
    assert service.metadata["x-b3-traceid"] == "1"


async def test_disabled_sdk_makes_no_spans(collector, monkeypatch):
    """OTEL_SDK_DISABLED=true is as OpenTelemetry has it, and the log shows no trace id of zeros."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with tracing() as traces, echo(traces) as service:
        await call(service.channel, "Unary")
    assert collector.spans == []
    assert service.seen.calls[-1].trace_id == ""


async def test_exporters(collector, monkeypatch, capsys):
    """OTEL_TRACES_EXPORTER sends spans elsewhere, or nowhere."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    async with tracing() as traces:
        traces.tracer.start_span("nowhere").end()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    async with tracing() as traces:
        traces.tracer.start_span("to the console").end()
    assert collector.spans == []
    shown = capsys.readouterr().out
    assert '"name": "to the console"' in shown
    assert "nowhere" not in shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_PROPAGATORS", "b3"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000"),
    ],
)
def test_useless_variable_is_a_start_error(monkeypatch, variable, value):
    """What OpenTelemetry can't use keeps the server from starting, with the variable's name."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(StartError, match=f"(?s)tracing can't start: ?.*{variable}"):
        traced_server("test")


async def test_shutdown_exports_what_has_ended(collector, monkeypatch):
    """Spans that wait for the next batch are not lost when the process ends."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    async with tracing() as traces:
        for _ in range(600):
            traces.tracer.start_span("work").end()
    await collector.take(600)


@pytest.mark.parametrize("listens", [True, False], ids=["that does not answer", "that is not there"])
def test_shutdown_is_bounded(monkeypatch, listens):
    """A collector that is no help does not hold up the end of the process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if listens else unused_port()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        traces = start_tracing(service_name="test", sampling_rate=1)
        traces.tracer.start_span("work").end()
        begin = time.monotonic()
        with structlog.testing.capture_logs() as captured:
            traces.shutdown(0.2)
        assert time.monotonic() - begin < 5  # the exporter's own bound is 10
        assert [line["event"] for line in captured] == [
            "spans were lost, since they could not be exported in time"
        ]


def test_library_does_not_import_opentelemetry():
    """Who does not trace pays nothing: neither the library, its client nor its server imports it."""
    program = (
        "import sys, grpc_common, grpc_common.server.server, grpc_common.client.channel; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "[]\n"
