import sys
import threading
import time

import grpc
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from grpc_common.core.calls import Call, CallType, Method
from grpc_common.observe.metrics import BUCKETS, CallMetrics, server_metrics
from grpc_common.observe.metrics_page import _WithoutCreated

LABELS = ("grpc_type", "grpc_service", "grpc_method")
METHODS = [
    Method("a.A", "Get", CallType.UNARY),
    Method("a.A", "Get", CallType.BIDI_STREAM),
    Method('b"\\\n', "ä", CallType.SERVER_STREAM),
]
GO_NAMES = {
    grpc.StatusCode.OK: "OK",
    grpc.StatusCode.CANCELLED: "Canceled",
    grpc.StatusCode.ABORTED: "Aborted",
}


class TheirMetrics:
    """The same metrics, counted by prometheus_client's own classes."""

    def __init__(self, registry):
        def counter(name, text, *labels):
            return prometheus_client.Counter(
                f"grpc_server_{name}", text, (*LABELS, *labels), registry=registry
            )

        self.started = counter("started", "Calls that began on the server.")
        self.handled = counter("handled", "Calls that ended on the server, by status.", "grpc_code")
        self.received = counter("msg_received", "Messages that the server received.")
        self.sent = counter("msg_sent", "Messages that the server sent.")
        text = "Seconds from the begin of a call to its end on the server."
        self.handling = prometheus_client.Histogram(
            "grpc_server_handling_seconds", text, LABELS, buckets=BUCKETS, registry=registry
        )
        text = "Calls that began on the server and have not ended."
        self.in_flight = prometheus_client.Gauge("grpc_server_in_flight", text, LABELS, registry=registry)

    def count(self, method, code, seconds):
        labels = (method.type.value, method.service, method.name)
        self.started.labels(*labels).inc()
        self.in_flight.labels(*labels).inc()
        self.received.labels(*labels).inc(2)
        self.sent.labels(*labels)
        self.handling.labels(*labels)
        if code is not None:
            self.in_flight.labels(*labels).dec()
            self.handled.labels(*labels, GO_NAMES[code]).inc()
            self.handling.labels(*labels).observe(seconds)


class FixedCall(Call):
    """A call that has taken a time which is known."""

    seconds = 0.0

    @property
    def elapsed(self):
        return self.seconds


def of(method, seconds, **fields):
    """Return a call that takes `seconds`."""
    call = FixedCall(method, **fields)
    call.seconds = seconds
    return call


def families(page):
    """Return what a page tells, whatever the order of the series of a metric."""
    return {
        family.name: (family.documentation, family.type, sorted(map(repr, family.samples)))
        for family in text_string_to_metric_families(page.decode())
        if not family.name.startswith("grpc_observer")
    }


seconds_of_calls = st.one_of(st.floats(0, 20), st.sampled_from(BUCKETS))


@given(st.lists(st.tuples(st.sampled_from(METHODS), st.sampled_from([None, *GO_NAMES]), seconds_of_calls)))
def test_page_is_the_one_that_prometheus_client_makes(calls):
    """Names, texts, labels, buckets and values are those of prometheus_client's own counters."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    metrics, expected = CallMetrics("server", ours), TheirMetrics(theirs)
    for method, code, seconds in calls:
        receive = metrics.counted(None, method, "received")
        call = of(method, seconds)
        metrics.started(call)
        receive(receive(b""))
        expected.count(method, code, seconds)
        call.code = code
        if code is not None:
            metrics.ended(call)
    assert families(generate_latest(ours)) == families(generate_latest(_WithoutCreated(theirs)))
    names = [
        [line.split(" ")[2] for line in generate_latest(each).decode().splitlines() if "# TYPE" in line]
        for each in (ours, _WithoutCreated(theirs))
    ]
    assert [name for name in names[0] if "observer" not in name] == names[1]


def test_exemplars_are_of_the_last_sampled_call_in_a_bucket():
    """A bucket links to the trace of its last call that is kept; OpenMetrics has it."""
    registry = CollectorRegistry()
    metrics = server_metrics(registry)
    method = METHODS[0]
    for trace, sampled, seconds in (
        ("a" * 32, True, 0.02),
        ("b" * 32, True, 0.021),
        ("c" * 32, False, 0.022),
    ):
        call = of(method, seconds, code=grpc.StatusCode.OK, trace_id=trace, sampled=sampled)
        metrics.started(call)
        metrics.ended(call)
    page = openmetrics.generate_latest(registry).decode()
    with_exemplar = [line for line in page.splitlines() if "trace_id" in line]
    assert len(with_exemplar) == 1
    assert 'le="0.025"' in with_exemplar[0]
    assert f'# {{trace_id="{"b" * 32}"}} 0.021 ' in with_exemplar[0]


@pytest.fixture
def hasty_threads():
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_lose_no_count():
    """Calls and messages in many threads at once are all there, and a page meanwhile never has too many."""
    registry, method = CollectorRegistry(), METHODS[0]
    metrics, threads, times = server_metrics(registry), 6, 2000
    begin = threading.Barrier(threads + 1)

    def count():
        send = metrics.counted(None, method, "sent")
        begin.wait(10)
        for _ in range(times):
            call = of(method, 0.5, code=grpc.StatusCode.OK)
            metrics.started(call)
            send(b"")
            metrics.ended(call)

    def value(name, **labels):
        labels |= {"grpc_type": "unary", "grpc_service": "a.A", "grpc_method": "Get"}
        return registry.get_sample_value(f"grpc_server_{name}", labels)

    running = [threading.Thread(target=count) for _ in range(threads)]
    for thread in running:
        thread.start()
    begin.wait(10)
    while any(thread.is_alive() for thread in running):
        assert 0 <= value("in_flight") <= threads
        time.sleep(0.01)
    assert value("started_total") == value("msg_sent_total") == threads * times
    assert value("handled_total", grpc_code="OK") == value("handling_seconds_count") == threads * times
    assert value("handling_seconds_bucket", le="0.5") == threads * times
    assert value("handling_seconds_sum") == threads * times / 2
    assert value("in_flight") == 0


def test_calls_may_end_in_another_thread():
    """A call that begins in one thread and ends in another is not in flight any more."""
    registry, method = CollectorRegistry(), METHODS[0]
    metrics, call = server_metrics(registry), Call(METHODS[0])
    metrics.started(call)
    call.code = grpc.StatusCode.OK
    thread = threading.Thread(target=metrics.ended, args=(call,))
    thread.start()
    thread.join()
    labels = {"grpc_type": "unary", "grpc_service": method.service, "grpc_method": method.name}
    assert registry.get_sample_value("grpc_server_started_total", labels) == 1
    assert registry.get_sample_value("grpc_server_in_flight", labels) == 0


def test_names_are_taken():
    """A name can't be registered twice, even before any call, and a page can be asked for one alone."""
    registry = CollectorRegistry()
    metrics = CallMetrics("server", registry)
    for name in ("grpc_server_started", "grpc_server_handling_seconds", "grpc_server_in_flight"):
        with pytest.raises(ValueError, match="Duplicated"):
            prometheus_client.Gauge(name, "Another.", registry=registry)
    metrics.expect(METHODS)
    asked = registry.restricted_registry(["grpc_server_started_total"]).collect()
    assert [metric.name for metric in asked] == ["grpc_server_started"]
