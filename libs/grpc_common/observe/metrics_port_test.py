import socket
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from grpc_common.observe import metrics_port
from grpc_common.observe.metrics_page import serve_metrics

HANGING = {
    "silent": b"",
    "half a request line": b"GET /met",
    "endless headers": b"GET /metrics HTTP/1.1\r\na: b\r\n",
    "half a header": b"GET /metrics HTTP/1.1\r\n" + b"a" * 1000,
    "never reading": b"GET /metrics HTTP/1.1\r\n\r\n",
}


@pytest.fixture
def large():
    """Return a registry with a page that fills every buffer of the kernel."""
    registry = CollectorRegistry()
    counter = Counter("large", "Large.", ["text"], registry=registry)
    for number in range(100):
        counter.labels(f"{number}" + "x" * 10_000)
    return registry


@pytest.fixture
def port(large):
    """Serve it; the value is the port."""
    port, stop = serve_metrics(0, large)
    yield port
    stop()


def connect(port):
    """Return a connection that takes little at a time."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", port))
    return client


def hang(stack, port, request, count):
    """Open connections that send `request` and no more."""
    clients = []
    for _ in range(count):
        client = stack.enter_context(connect(port))
        with suppress(ConnectionError):  # it may be cut off already
            client.sendall(request)
        clients.append(client)
    return clients


def scrape(port):
    """Return the page, or fail as Prometheus would."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return response.read()


def is_cut_off(client):
    """Return whether the server hangs up within ten seconds."""
    client.settimeout(10)
    try:
        while client.recv(2**20):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


@pytest.mark.parametrize("request_sent", HANGING.values(), ids=HANGING)
def test_scrape_gets_through_500_hanging_connections(port, request_sent):
    """Prometheus gets its page, and there are never more threads than the bound."""
    before = threading.active_count()
    with ExitStack() as stack:
        hang(stack, port, request_sent, 500)
        # A thread that has left its place counts until it has ended.
        assert threading.active_count() <= before + 2 * metrics_port.THREADS
        start = time.monotonic()
        assert b"large_total" in scrape(port)
        assert time.monotonic() - start < metrics_port.TIMEOUT  # after which they would leave by themselves
        assert threading.active_count() <= before + 2 * metrics_port.THREADS


def test_scrape_gets_through_all_kinds_of_hanging_connections(port):
    """So it does when all kinds come at the same time, and one more scrape after the other."""
    with ExitStack() as stack:
        for request in HANGING.values():
            hang(stack, port, request, 100)
        for _ in range(3):
            assert b"large_total" in scrape(port)


@pytest.mark.parametrize("request_sent", HANGING.values(), ids=HANGING)
def test_client_that_hangs_is_cut_off(port, request_sent, monkeypatch):
    """A connection that does not end is ended, even where there is room."""
    monkeypatch.setattr(metrics_port, "TIMEOUT", 0.2)
    with ExitStack() as stack:
        (client,) = hang(stack, port, request_sent, 1)
        if request_sent != HANGING["never reading"]:
            assert is_cut_off(client)
        else:
            assert wait_for_threads()


def wait_for_threads():
    """Return whether no thread serves a connection any more, within ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not any("process_request" in thread.name for thread in threading.enumerate()):
            return True
        time.sleep(0.05)
    return False


def test_client_that_drips_is_cut_off(port, monkeypatch):
    """Neither does a byte from time to time keep a connection open."""
    monkeypatch.setattr(metrics_port, "TIMEOUT", 0.5)
    with connect(port) as client, pytest.raises(ConnectionError):
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            client.sendall(b"a")
            time.sleep(0.05)


def test_collectors_that_hang_bound_the_threads():
    """If the program's own metrics hang, more scrapes are closed, and the port can be stopped."""
    registry, go = CollectorRegistry(), threading.Event()
    Gauge("slow", "Slow.", registry=registry).set_function(lambda: go.wait(60))
    port, stop = serve_metrics(0, registry)
    before = threading.active_count()
    with ExitStack() as stack:
        hang(stack, port, HANGING["never reading"], metrics_port.THREADS)
        (last,) = hang(stack, port, HANGING["never reading"], 1)
        assert is_cut_off(last)
        assert threading.active_count() <= before + metrics_port.THREADS
        stop()
        go.set()
    assert wait_for_threads()


def test_stop_leaves_no_thread(large):
    """Connections that hang when the port is stopped are cut off with it."""
    port, stop = serve_metrics(0, large)
    with ExitStack() as stack:
        hang(stack, port, b"", 5)
        scrape(port)
        stop()
        assert wait_for_threads()
