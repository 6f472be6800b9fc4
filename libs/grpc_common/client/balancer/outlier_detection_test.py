from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.balancer.outlier_detection import OutlierDetector
from grpc_common.client.service_config import OutlierDetection

FOUR = ["a", "b", "c", "d"]


class Service:
    """Endpoints whose calls end as the test says, swept each ten seconds."""

    def __init__(self, **settings):
        self.detector = OutlierDetector(OutlierDetection(**settings))
        self.now = 0.0

    def interval(self, addresses=FOUR, calls=100, **failures):
        """Let each endpoint have some calls, of which some fail; return the ejected ones."""
        for address in addresses:
            if address not in self.detector.ejected(addresses):
                self.count(address, calls, failures.get(address, 0))
        self.now += 10
        self.changed = self.detector.sweep(self.now, addresses)
        return self.detector.ejected(addresses)

    def count(self, address, calls, failed):
        """Let calls to one endpoint end."""
        outcomes = self.detector.outcomes(address)
        for n in range(calls):
            outcomes.count(is_ok=False) if n < failed else outcomes.count(is_ok=True)

    def times_out(self, sweeps, **failures):
        """Return how long, in sweeps, the endpoint `a` was out each time."""
        states = "".join("x" if "a" in self.interval(**failures) else " " for _ in range(sweeps))
        return [len(out) for out in states.split()]


def test_failing_endpoint():
    """An endpoint most of whose calls fail is left out, and comes back when its time is over."""
    service = Service()
    assert service.interval(a=100) == {"a"}
    assert service.changed
    assert service.interval() == {"a"}
    assert not service.changed
    assert service.interval() == {"a"}
    assert service.interval() == set()
    assert service.changed


def test_threshold():
    """As many failures as the threshold says are still borne."""
    assert Service().interval(a=85) == set()
    assert Service().interval(a=86) == {"a"}
    assert Service(failure_percentage=20).interval(a=21) == {"a"}


def test_counts_begin_anew():
    """Failures of different intervals are not added up."""
    service = Service()
    for _ in range(3):
        assert service.interval(calls=49, a=49) == set()
    assert service.interval(calls=50, a=50) == {"a"}


def test_minimum_hosts():
    """With fewer endpoints nobody is left out."""
    assert Service().interval(["a", "b"], a=100) == set()
    assert Service(minimum_hosts=2).interval(["a", "b"], a=100) == {"a"}


def test_all_fail():
    """When no endpoint is well the fault is elsewhere, and none is left out."""
    assert Service().interval(a=100, b=100, c=100, d=100) == set()


def test_failing_one_with_the_most_calls():
    """An endpoint with too few calls to be judged still shows that another one fails for itself."""
    service = Service()
    service.count("a", 100, 100)
    assert service.interval(calls=1, a=1) == {"a"}


def test_worst_ones():
    """When more fail than may be left out, the worst ones are."""
    assert Service(failure_percentage=50).interval(a=60, b=90, c=80) == {"b", "c"}


def test_no_more_than_may_be():
    """At least one may be left out; while as many are out as may be, no other takes a place of theirs."""
    assert Service(max_ejection_percent=10).interval(a=100) == {"a"}
    service = Service()
    service.interval(a=100, b=100)
    assert service.interval(c=100) == {"a", "b"}


def test_calls_that_end_late():
    """Calls that were in flight at the ejection and fail don't make it longer."""
    service = Service()
    service.interval(a=100)
    for _ in range(2):
        service.count("a", 100, 100)
        assert service.interval() == {"a"}
    assert service.interval() == set()


def test_again_and_again():
    """Each ejection is longer than the one before, up to 300 s."""
    assert Service().times_out(120, a=100)[:8] == [3, 6, 9, 12, 15, 18, 21, 24]


def test_longest_ejection():
    """No ejection is longer than 300 s, or than the first one if that is longer."""
    assert Service().times_out(400, a=100)[9:12] == [30, 30, 30]
    assert Service(base_ejection_time=400).times_out(90, a=100)[:2] == [40, 40]


def test_well_again():
    """Each sweep that finds an endpoint well shortens the next ejection again."""
    service = Service()
    assert service.times_out(11, a=100) == [3, 6]
    assert service.interval() == set()
    assert service.times_out(7, a=100) == [6]
    for _ in range(2):
        assert service.interval() == set()
    assert service.times_out(4, a=100) == [3]


def test_memory():
    """An endpoint that was away for a moment is still out, and others that come and go change nothing."""
    service = Service()
    service.interval(a=100)
    assert service.interval(["b", "c", "d"]) == set()
    assert service.interval(["a", "b", "c", "d", "e"]) == {"a"}
    assert service.interval() == set()
    assert service.times_out(4, a=100) == [4]


def test_endpoints_that_are_gone():
    """Of endpoints that are gone nothing is kept in the end."""
    service = Service()
    service.interval(a=100)
    for n in range(50):
        service.interval([f"b{n}", f"c{n}", f"d{n}"])
    assert len(service.detector._records) == 3  # noqa: SLF001 (memory shows nowhere else)


def test_ejected_ones_remain():
    """When the endpoints that are well leave, some of those left out come back: those out for longest."""
    service = Service()
    service.interval(a=100)
    assert service.interval(b=100) == {"a", "b"}
    assert service.detector.ejected(["a", "b"]) == {"b"}
    assert service.detector.ejected(["a"]) == set()


ADDRESSES = st.sets(st.sampled_from("abcdefghijklmnopqrst"), min_size=1)


@given(
    st.integers(1, 100),
    st.lists(st.tuples(ADDRESSES, st.dictionaries(st.sampled_from("abcdefgh"), st.just(50))), max_size=10),
    ADDRESSES,
)
def test_most_ejections(percent, intervals, asked):
    """Whatever fails, whoever comes and goes: no more are out than may be, and never all."""
    service = Service(max_ejection_percent=percent, minimum_hosts=1)
    for addresses, failures in intervals:
        out = service.interval(addresses, 50, **failures)
        for those, ejected in ((addresses, out), (asked, service.detector.ejected(asked))):
            assert ejected < those
            assert len(ejected) <= max(1, len(those) * percent / 100)
