"""The numbers of calls that Prometheus asks for, counted without a lock.

prometheus_client's own counters take a lock and two look-ups each time, which for the six of a call is more
than all else that is done for it. Here each thread has numbers of its own, that no other thread writes; they
are added up when the page is read. A page that is read while a call ends may have some of its numbers.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import grpc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from grpc_common.core.calls import Call, Method

_LABELS = ("grpc_type", "grpc_service", "grpc_method")

_CODES = tuple(grpc.StatusCode)

# OK, and what alerts count as the server's fault: rate() does not see a failure that begins its series. The
# other codes would be ten series more for each method, of which most stay at 0 for ever.
_EXPECTED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def _go_name(code: grpc.StatusCode) -> str:
    """Return `code` as Go, and so every dashboard, spells it: "OK", "NotFound", "Canceled"."""
    if code is grpc.StatusCode.OK:
        return "OK"
    return code.name.title().replace("_", "").replace("Cancelled", "Canceled")


_GO_NAMES = {code.value[0]: _go_name(code) for code in _CODES}


class Numbers:
    """What one thread has counted of one method."""

    __slots__ = (
        "_bounds",
        "buckets",
        "ended",
        "exemplars",
        "in_flight",
        "received",
        "seconds",
        "sent",
        "started",
    )

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.started = 0
        self.in_flight = 0
        """Below 0 if calls end in another thread than they begin; the sum of all threads is right."""
        self.ended = [0] * (1 + max(_GO_NAMES))
        """By the number of the code."""
        self.received = 0
        self.sent = 0
        self.seconds = 0.0
        self.buckets = [0] * (1 + len(bounds))
        self.exemplars: dict[int, Exemplar] = {}
        """The last one of each bucket."""

    def begin(self) -> None:
        """Count a call that begins."""
        self.started += 1
        self.in_flight += 1

    def end(self, call: Call) -> None:
        """Count a call that has ended."""
        assert call.code is not None
        elapsed = call.elapsed
        bucket = bisect_left(self._bounds, elapsed)
        self.in_flight -= 1
        self.ended[call.code._value_[0]] += 1
        self.seconds += elapsed
        self.buckets[bucket] += 1
        if call.sampled:  # only of a trace that is kept: an exemplar that leads nowhere is worse than none
            self.exemplars[bucket] = Exemplar({"trace_id": call.trace_id}, elapsed, time.time())


class MethodNumbers(dict[int, Numbers]):
    """What all threads have counted of one method, by their `threading.get_ident`.

    A thread that has ended leaves its numbers to the next one with the same identity.
    """

    def __init__(self, method: Method, bounds: Sequence[float]) -> None:
        super().__init__()
        self.method = method
        self.is_expected = False
        """Whether the codes that alerts ask for are shown before a call has ended with them."""
        self._bounds = bounds

    def __missing__(self, thread: int) -> Numbers:
        """Make the numbers of a thread, which is the one that asks."""
        numbers = self[thread] = Numbers(self._bounds)
        return numbers


class Families:
    """The metrics of one side, as Prometheus gets them.

    Args:
        side: "server" or "client".
        bounds: of the histogram's buckets, in seconds.

    """

    def __init__(self, side: str, bounds: Sequence[float]) -> None:
        def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"grpc_{side}_{name}", text, labels=(*_LABELS, *labels))

        self._les = [floatToGoString(bound) for bound in (*bounds, float("inf"))]  # type: ignore[no-untyped-call]
        self._started = counter("started", f"Calls that began on the {side}.")
        self._handled = counter("handled", f"Calls that ended on the {side}, by status.", "grpc_code")
        self._received = counter("msg_received", f"Messages that the {side} received.")
        self._sent = counter("msg_sent", f"Messages that the {side} sent.")
        self._handling = HistogramMetricFamily(
            f"grpc_{side}_handling_seconds",
            f"Seconds from the begin of a call to its end on the {side}.",
            labels=_LABELS,
        )
        self._in_flight = GaugeMetricFamily(
            f"grpc_{side}_in_flight",
            f"Calls that began on the {side} and have not ended.",
            labels=_LABELS,
        )

    def __iter__(self) -> Iterator[Metric]:
        yield from (self._started, self._handled, self._received, self._sent, self._handling, self._in_flight)

    def add(self, method: MethodNumbers) -> None:
        """Add the series of a method."""
        labels = (method.method.type.value, method.method.service, method.method.name)
        threads = list(method.values())
        ended = _sums([numbers.ended for numbers in threads], 1 + max(_GO_NAMES))
        self._started.add_metric(labels, sum(numbers.started for numbers in threads))
        self._in_flight.add_metric(labels, sum(numbers.in_flight for numbers in threads))
        for code in _CODES:
            number = code.value[0]
            if ended[number] or (method.is_expected and code in _EXPECTED):
                self._handled.add_metric((*labels, _GO_NAMES[number]), ended[number])
        self._received.add_metric(labels, sum(numbers.received for numbers in threads))
        self._sent.add_metric(labels, sum(numbers.sent for numbers in threads))
        self._add_histogram(labels, threads)

    def _add_histogram(self, labels: Sequence[str], threads: Sequence[Numbers]) -> None:
        below, buckets = 0, []
        for index, count in enumerate(_sums([numbers.buckets for numbers in threads], len(self._les))):
            below += count
            exemplars = [numbers.exemplars[index] for numbers in threads if index in numbers.exemplars]
            latest = max(exemplars, key=lambda exemplar: exemplar.timestamp or 0, default=None)
            buckets.append((self._les[index], below, latest))
        seconds = sum(numbers.seconds for numbers in threads)
        self._handling.add_metric(labels, buckets, seconds)  # type: ignore[arg-type]  # None is no exemplar


def _sums(columns: Sequence[Sequence[int]], length: int) -> list[int]:
    return [sum(column[index] for column in columns) for index in range(length)]
