import asyncio
import socket
import urllib.request
from contextlib import asynccontextmanager

import grpc
import pytest
from prometheus_client import REGISTRY, generate_latest

from grpc_common.core.calls import Call, CallType, Method
from grpc_common.observe.metrics import (
    UNKNOWN_METHOD,
    client_metrics,
    count_connections,
    serve_metrics,
    server_metrics,
)

STREAM = CallType.BIDI_STREAM


def value(name, method, **labels):
    """Return what the registry has for `name` of `method`, or None."""
    labels = {"grpc_type": method.type, "grpc_service": method.service, "grpc_method": method.name} | labels
    return REGISTRY.get_sample_value(name, labels)


def ended(method, code):
    """Return a call of `method` that has ended with `code`."""
    return Call(method, code=code)


def page(port, address="127.0.0.1"):
    """Return the page that `address` serves at /metrics."""
    with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=5) as response:
        return response.read().decode()


@pytest.fixture
def served():
    """Serve the metrics; the value is the port."""
    port, stop = serve_metrics(0)
    yield port
    stop()


@pytest.mark.parametrize(("side", "of"), [("server", server_metrics), ("client", client_metrics)])
def test_call_is_counted_at_its_start_and_its_end(side, of):
    """A call is started and in flight until it ends, then handled with its code and its duration."""
    method = Method("test.Life", "Call", CallType.UNARY)
    call = Call(method)
    of().started(call)
    assert value(f"grpc_{side}_started_total", method) == 1
    assert value(f"grpc_{side}_in_flight", method) == 1
    assert value(f"grpc_{side}_handling_seconds_count", method) == 0
    call.code = grpc.StatusCode.OK
    call.start -= 0.02
    of().ended(call)
    assert value(f"grpc_{side}_in_flight", method) == 0
    assert value(f"grpc_{side}_handled_total", method, grpc_code="OK") == 1
    assert value(f"grpc_{side}_handling_seconds_count", method) == 1
    assert value(f"grpc_{side}_handling_seconds_bucket", method, le="0.01") == 0
    assert 0.02 <= value(f"grpc_{side}_handling_seconds_sum", method) <= call.elapsed


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (grpc.StatusCode.NOT_FOUND, "NotFound"),
        (grpc.StatusCode.CANCELLED, "Canceled"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DeadlineExceeded"),
        (grpc.StatusCode.OK, "OK"),
    ],
)
def test_codes_are_spelled_as_dashboards_know_them(code, label):
    """The label grpc_code has the names of Go's codes, since that is what queries select."""
    method = Method("test.Codes", "Call", STREAM)
    server_metrics().ended(ended(method, code))
    assert value("grpc_server_handled_total", method, grpc_code=label) == 1


def test_unknown_methods_make_no_labels():
    """However many names callers make up, the page grows only once."""
    metrics = server_metrics()

    def call_unknown():
        call = Call(UNKNOWN_METHOD)
        metrics.started(call)
        call.code = grpc.StatusCode.UNIMPLEMENTED
        metrics.ended(call)

    call_unknown()
    lines = generate_latest().count(b"\n")
    for _ in range(100):
        call_unknown()
    assert generate_latest().count(b"\n") == lines
    assert value("grpc_server_handled_total", UNKNOWN_METHOD, grpc_code="Unimplemented") == 101


def test_every_server_of_a_process_has_the_same_metrics():
    """A second server or channel registers nothing twice."""
    assert server_metrics() is server_metrics()
    assert client_metrics() is client_metrics()
    assert server_metrics() is not client_metrics()


def test_message_that_cannot_be_read_is_not_counted():
    """A deserializer that raises counts nothing, and the error passes through."""
    method = Method("test.Garbage", "Call", STREAM)
    with pytest.raises(UnicodeDecodeError):
        server_metrics().counted(bytes.decode, method, "received")(b"\xff")
    assert value("grpc_server_msg_received_total", method) == 0


async def repeat(requests, _context):
    """Answer each request twice."""
    async for request in requests:
        yield request
        yield request


@asynccontextmanager
async def repeater(method):
    """Serve `repeat` with its messages counted; yield the port."""
    metrics = server_metrics()
    handler = grpc.stream_stream_rpc_method_handler(
        repeat,
        request_deserializer=metrics.counted(bytes.upper, method, "received"),
        response_serializer=metrics.counted(bytes.swapcase, method, "sent"),
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(method.service, {method.name: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


async def test_messages_of_a_stream_are_counted():
    """Both sides count what they receive and what they send, with the messages unchanged."""
    method = Method("test.Repeater", "Repeat", STREAM)
    metrics = client_metrics()
    async with repeater(method) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = channel.stream_stream(
            method.path,
            request_serializer=metrics.counted(None, method, "sent"),
            response_deserializer=metrics.counted(bytes.decode, method, "received"),
        )
        assert [answer async for answer in stub(iter([b"a", b"b", b"c"]))] == list("aabbcc")
    assert value("grpc_server_msg_received_total", method) == 3
    assert value("grpc_server_msg_sent_total", method) == 6
    assert value("grpc_client_msg_sent_total", method) == 3
    assert value("grpc_client_msg_received_total", method) == 6


async def test_connections_follow_clients():
    """The gauge has the connections of the port when the page is read, and goes when the server does."""
    method = Method("test.Connections", "Repeat", STREAM)

    def gauge(port):
        return REGISTRY.get_sample_value("grpc_server_connections", {"port": str(port)})

    async with repeater(method) as port:
        stop = count_connections(port)
        assert gauge(port) == 0
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            assert gauge(port) == 1
        stop()
        assert gauge(port) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_page_is_served_on_ipv4_and_ipv6(served, address):
    """Prometheus gets the page whichever kind of address the pod has."""
    assert "python_info" in await asyncio.to_thread(page, served, address)


async def test_page_has_metrics_of_the_process_and_of_the_garbage_collector(served):
    """Memory, file descriptors and collections come with the calls, and no series twice as *_created."""
    server_metrics().started(Call(Method("test.Page", "Call", CallType.UNARY)))
    text = await asyncio.to_thread(page, served)
    for name in ("process_resident_memory_bytes", "process_open_fds", "python_gc_collections_total"):
        assert f"\n{name}" in text
    assert (
        'grpc_server_started_total{grpc_method="Call",grpc_service="test.Page",grpc_type="unary"} 1.0' in text
    )
    assert "_created" not in text


@pytest.mark.parametrize("address", ["", "::"])
def test_occupied_port_is_an_os_error(address):
    """A port that another program has, over IPv4 or IPv6, is refused."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as other,
        pytest.raises(OSError, match="in use"),
    ):
        serve_metrics(other.getsockname()[1])


def test_two_pages_do_not_share_a_port(served):
    """A second server of metrics on the same port is refused."""
    with pytest.raises(OSError, match="in use"):
        serve_metrics(served)


def test_stopped_page_frees_its_port():
    """After stop the port can be served again at once."""
    port, stop = serve_metrics(0)
    stop()
    again, stop = serve_metrics(port)
    stop()
    assert again == port
