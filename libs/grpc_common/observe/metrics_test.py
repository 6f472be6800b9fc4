import asyncio
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, asynccontextmanager, suppress

import grpc
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, generate_latest
from structlog.testing import capture_logs

from grpc_common.core.calls import Call, CallType, Method
from grpc_common.core.ports import Address
from grpc_common.observe.metrics import UNKNOWN_METHOD, client_metrics, count_connections, server_metrics
from grpc_common.observe.metrics_page import _WithoutCreated, serve_metrics

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
        stop = count_connections(Address(port=port))
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


@pytest.mark.usefixtures("served")
def test_page_changes_nothing_for_the_program():
    """A program's own registry and pages keep their series *_created; only ours leaves them out."""
    registry = CollectorRegistry()
    Counter("own", "A program's own.", registry=registry).inc()
    Gauge("job_created", "No counter's.", registry=registry).set(1)
    assert b"own_created" in generate_latest(registry)
    shown = generate_latest(_WithoutCreated(registry)).decode()
    assert "own_created" not in shown
    assert "own_total 1.0" in shown
    assert "job_created 1.0" in shown
    assert b"own_created" in generate_latest(registry)


async def test_page_of_single_series(served):
    """Prometheus may ask for some series alone."""
    url = f"http://127.0.0.1:{served}/metrics?name%5B%5D=process_open_fds&name%5B%5D=python_info"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
    assert {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"} == {
        "process_open_fds",
        "python_info",
    }


BAD_REQUESTS = {
    "garbage": b"\x16\x03\x01\x00\xff\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "half a request": b"GET /met",
    "long line": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
    "HEAD": b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST": b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "bad query": b"GET /metrics?name%5B%5D=%ff&x=%zz HTTP/1.1\r\n\r\n",
    "bad accept": b"GET /metrics HTTP/1.1\r\nAccept: ;;q=x,\xff\r\nAccept-Encoding: gzip;q\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("request_sent", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_page_outlives_bad_requests(served, request_sent, capfd):
    """Whatever a client sends, the next one gets the page, and nothing is printed that is no log line."""
    with socket.create_connection(("127.0.0.1", served)) as client:
        client.sendall(request_sent)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(20)
        with suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    assert "python_info" in await asyncio.to_thread(page, served)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("version", ["abc", "1.x", "-", "1..0", "\xff", "9" * 5000])
async def test_format_that_nobody_knows_is_no_error(served, version):
    """Who asks for a version of OpenMetrics that is none gets the page all the same, and is in no log."""
    headers = {"Accept": f"application/openmetrics-text;version={version}"}
    request = urllib.request.Request(f"http://127.0.0.1:{served}/metrics", headers=headers)
    with capture_logs() as logs:
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=10).read())  # noqa: S310
    assert b"python_info" in text
    assert logs == []


async def test_pages_are_made_one_at_a_time():
    """Many who ask at once take one thread's share of the interpreter, and each gets its page."""
    registry, alone = CollectorRegistry(), threading.Lock()

    def look():
        assert alone.acquire(blocking=False)
        time.sleep(0.02)  # in which the others would come
        alone.release()
        return 1

    Gauge("look", "Looks whether it is alone.", registry=registry).set_function(look)
    port, stop = serve_metrics(0, registry)
    try:
        pages = await asyncio.gather(*(asyncio.to_thread(page, port) for _ in range(5)))
    finally:
        await asyncio.to_thread(stop)
    assert ["look 1.0" in text for text in pages] == [True] * 5


async def test_page_outlives_slow_and_hasty_clients(served, capfd):
    """Clients that do not ask, do not read, or hang up at once, do not keep Prometheus from its page."""
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", served)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.sendall(b"GET / HT")
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", served)) as hasty:
                hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                hasty.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert "python_info" in await asyncio.to_thread(page, served)
    assert capfd.readouterr().err == ""


async def test_failing_collector_is_logged(served, capfd):
    """A metric of the program that can't be read is status 500 and a log line, not a printed traceback."""
    broken = Gauge("broken", "Fails.")
    broken.set_function(lambda: 1 / 0)
    try:
        with capture_logs() as logs, pytest.raises(urllib.error.HTTPError, match="500"):
            await asyncio.to_thread(page, served)
    finally:
        REGISTRY.unregister(broken)
    assert [line["event"] for line in logs] == ["the page of metrics failed"]
    assert "python_info" in await asyncio.to_thread(page, served)
    assert capfd.readouterr().err == ""


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
