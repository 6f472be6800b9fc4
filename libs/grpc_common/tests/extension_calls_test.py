"""The extension points around calls that the README's table lists: each is used once, and works.

What a team writes for one stands between `# region: NAME` and `# endregion`; readme_test.py counts it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, Counter, Gauge

import grpc_common
from grpc_common import Server, channel, current_call
from grpc_common.testing import configure

CODE = grpc.StatusCode
REGISTRY = CollectorRegistry()


async def echo(request, _context=None):
    """Answer with the request."""
    return request


@asynccontextmanager
async def serving(server, handler=echo, *, open_channel=grpc.aio.insecure_channel):
    """Serve `handler`; yield the methods that answer with one message and with a stream of it."""

    async def stream(request, context):
        yield await handler(request, context)

    def add(_servicer, grpc_server):
        handlers = {
            "Call": grpc.unary_unary_rpc_method_handler(handler),
            "Stream": grpc.unary_stream_rpc_method_handler(stream),
        }
        grpc_server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])

    server.add(None, add)
    async with server.serving() as port, open_channel(f"127.0.0.1:{port}") as opened:
        streaming = opened.unary_stream("/test.Echo/Stream")

        async def read(request, **options):
            return await anext(aiter(streaming(request, **options)))

        yield opened.unary_unary("/test.Echo/Call"), read


async def code(method, *metadata):
    """Return how a call ends."""
    try:
        await method(b"hello", timeout=10, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return CODE.OK


# region: interceptor of a server
TENANTS = Gauge("calls_in_flight", "By tenant.", ["tenant"], registry=REGISTRY)


@asynccontextmanager
async def of_tenants(call: grpc_common.Call) -> AsyncIterator[None]:
    """Let in tenants, and count their calls."""
    tenant = dict(call.metadata).get("tenant")
    if tenant is None:
        raise grpc_common.StatusError(CODE.FAILED_PRECONDITION, "metadata `tenant` is missing")
    with TENANTS.labels(tenant).track_inprogress():
        yield


# endregion
async def test_interceptor_of_a_server():
    """One function is around calls that answer with one message, and around those that stream."""
    seen = []

    async def handler(request, _context):
        seen.append(REGISTRY.get_sample_value("calls_in_flight", {"tenant": "blue"}))
        return request

    server = Server(
        configure(),
        # region: interceptor of a server
        interceptors=[of_tenants],
        # endregion
    )
    async with serving(server, handler) as methods:
        for method in methods:
            assert await code(method) is CODE.FAILED_PRECONDITION
            assert await code(method, ("tenant", "blue")) is CODE.OK
    assert seen == [1, 1]
    assert REGISTRY.get_sample_value("calls_in_flight", {"tenant": "blue"}) == 0


# region: interceptor of a client
@asynccontextmanager
async def as_blue(call: grpc_common.Call) -> AsyncIterator[None]:
    """Say which tenant calls."""
    call.metadata.append(("tenant", "blue"))
    yield


# endregion
async def test_interceptor_of_a_client():
    """Its metadata is sent with calls of both kinds."""
    opening = partial(
        channel,
        # region: interceptor of a client
        interceptors=[as_blue],
        # endregion
    )
    async with serving(Server(configure(), interceptors=[of_tenants]), open_channel=opening) as methods:
        assert [await code(method) for method in methods] == [CODE.OK, CODE.OK]


# region: metric of one's own at a call's end
ENDED = Counter("ended", "Calls that have ended.", ["method", "code"], registry=REGISTRY)


class CountEnds:
    """Counts how calls end."""

    def started(self, call: grpc_common.Call) -> None:
        pass

    def ended(self, call: grpc_common.Call) -> None:
        ENDED.labels(call.method.path, call.code.name).inc()


# endregion
async def test_metric_of_ones_own():
    """An observer sees the status of calls that never came to a handler, too."""
    server = Server(
        configure(),
        interceptors=[of_tenants],
        # region: metric of one's own at a call's end
        observers=[CountEnds()],
        # endregion
    )
    async with serving(server) as (method, _):
        await code(method)
    labels = {"method": "/test.Echo/Call", "code": "FAILED_PRECONDITION"}
    assert REGISTRY.get_sample_value("ended_total", labels) == 1


async def test_work_in_the_background():
    """It goes on after the call, and the server ends after it."""
    done = []

    async def send(request):
        await asyncio.sleep(0.2)
        done.append(request)

    async def handler(request, _context):
        # region: work in the background that the drain waits for
        current_call().run_in_background(send(request))
        # endregion
        return request

    async with serving(Server(configure(DRAIN_GRACE="20s")), handler) as (method, _):
        assert await code(method) is CODE.OK
        assert done == []
    assert done == [b"hello"]


class NoSuchUserError(Exception):
    """A domain's own."""


class ConflictError(Exception):
    """Another one."""


async def test_errors():
    """The domain knows nothing of gRPC, and its exceptions have statuses with details."""
    errors = {b"1": NoSuchUserError("no user 1"), b"2": ConflictError("secret")}

    async def handler(request, _context):
        raise errors[request]

    server = Server(
        configure(),
        # region: errors with details, and statuses of a domain's exceptions
        errors={
            NoSuchUserError: lambda error: grpc_common.not_found(str(error), resource_type="user.User"),
            ConflictError: CODE.ABORTED,
        },
        # endregion
    )
    async with serving(server, handler) as methods:
        for method in methods:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"1")
            assert (caught.value.code(), caught.value.details()) == (CODE.NOT_FOUND, "no user 1")
            assert grpc_common.error_details(caught.value)[0].resource_type == "user.User"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"2")
            assert (caught.value.code(), "secret" in caught.value.details()) == (CODE.ABORTED, False)


async def test_span_of_ones_own(monkeypatch):
    """It has the exception that leaves it, and is below the span of the call."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    config = configure(TRACING_ENABLED="true", TRACING_SAMPLING_RATE="1", TRACING_SERVICE_NAME="test")
    server = Server(config)
    # region: span of one's own, with the exception
    tracer = server.tracing.provider.get_tracer("user")
    # endregion
    spans = InMemorySpanExporter()
    server.tracing.provider.add_span_processor(SimpleSpanProcessor(spans))

    async def handler(_request, _context):
        # region: span of one's own, with the exception
        with tracer.start_as_current_span("query"):
            # endregion
            raise ConflictError

    async with serving(server, handler) as (method, _):
        assert await code(method) is CODE.INTERNAL
    named = {span.name: span for span in spans.get_finished_spans()}
    assert named["query"].parent.span_id == named["test.Echo/Call"].context.span_id
    assert named["query"].events[0].name == "exception"
