import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.balancer.least_request import LeastRequest
from grpc_common.client.balancer.round_robin import RoundRobin
from grpc_common.client.balancer.slow_start import slow_start
from grpc_common.client.resolver.endpoint import Endpoint

OLD = -1e9


@dataclass(eq=False, slots=True)
class Server:
    """A candidate."""

    endpoint: Endpoint
    ready_since: float = OLD
    in_flight: int = 0


class Clock:
    """Seconds that the test sets."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


def servers(*ready_since):
    """Return a candidate for each time at which it became READY."""
    return [Server(Endpoint(f"10.0.0.{n}:1"), since) for n, since in enumerate(ready_since)]


INNER = st.sampled_from([RoundRobin, LeastRequest])


@pytest.mark.parametrize(("age", "share"), [(0, 0.1), (1, 0.1), (3, 0.3), (7.5, 0.75), (9.9, 0.99)])
def test_share_of_a_new_one(age, share):
    """A new candidate gets the part of its turns that is its part of the window, at least a tenth."""
    clock = Clock(age)
    *old, new = servers(OLD, OLD, OLD, 0)
    picker = slow_start(10, RoundRobin, clock)([*old, new])
    got = Counter(picker.pick() for _ in range(3000))
    assert got[new] / got[old[0]] == pytest.approx(share, rel=0.03)
    assert max(got[one] for one in old) - min(got[one] for one in old) <= 1


def test_share_follows_the_clock():
    """The share grows with the time from turn to turn, even if a turn is a large part of the window."""
    clock = Clock()
    candidates = servers(*[OLD] * 99, 0)
    picker = slow_start(10, RoundRobin, clock)(candidates)
    got = []
    for _ in range(20):  # each a turn of everybody
        got.append(Counter(picker.pick() for _ in range(100))[candidates[-1]])
        clock.now += 1
    # About half of the ten turns in the window, and all of those after it.
    assert sum(got[:10]) in {4, 5, 6}
    assert got[11:] == [1] * 9


@pytest.mark.parametrize("age", [0, 5])
def test_all_new(age):
    """Candidates that came together share exactly as if they were old."""
    candidates = servers(0, 0, 0, 0)
    picker = slow_start(10, RoundRobin, Clock(age))(candidates)
    assert [Counter(picker.pick() for _ in candidates) for _ in range(99)] == [Counter(candidates)] * 99


@pytest.mark.parametrize("age", [0, 5])
def test_cost_of_all_new(age):
    """Candidates that came together refuse no turn."""
    turns = []

    class Counting(RoundRobin):
        def pick(self, tried=()):
            turns.append(super().pick(tried))
            return turns[-1]

    picker = slow_start(10, Counting, Clock(age))(servers(0, 0, 0, 0))
    assert [picker.pick() for _ in range(100)] == turns


def test_new_and_newer():
    """Among new candidates the shares are as their parts of the window."""
    new, newer = servers(0, 3)
    picker = slow_start(10, RoundRobin, Clock(4))([new, newer])
    got = Counter(picker.pick() for _ in range(5000))
    assert got[new] / got[newer] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("age", [10, 11])
def test_old_ones(age):
    """Without new candidates the picker is the inner one itself."""
    assert type(slow_start(10, RoundRobin, Clock(age))(servers(0, OLD))) is RoundRobin


def test_end_of_the_window():
    """After the window a candidate has its whole share."""
    clock = Clock(0)
    candidates = servers(OLD, OLD, OLD, 0)
    picker = slow_start(10, RoundRobin, clock)(candidates)
    for _ in range(10):
        picker.pick()
    clock.now = 10
    assert Counter(picker.pick() for _ in range(400)) == dict.fromkeys(candidates, 100)


def test_first_turn_in_a_fleet():
    """A tenth of a fleet's clients gives a new candidate its first turn, rather than none or all."""
    first = 0
    for _ in range(3000):
        old, new = servers(OLD, 0)
        picker = slow_start(10, RoundRobin, Clock(0))([old, new])
        first += new in [picker.pick(), picker.pick()]
    assert 200 < first < 500


@given(
    st.lists(st.floats(-20, 0), min_size=1, max_size=10).map(lambda since: servers(*since)),
    INNER,
    st.data(),
    st.integers(),
)
def test_tried_ones(candidates, inner, data, seed):
    """One that was tried is never picked while another is there, however new; else one of them is."""
    random.seed(seed)
    clock = Clock()
    picker = slow_start(10, inner, clock)(candidates)
    for tried in data.draw(st.lists(st.sets(st.sampled_from(candidates)), max_size=20)):
        chosen = picker.pick(tried)
        assert chosen in candidates
        assert chosen not in tried or tried == set(candidates)
        clock.now += data.draw(st.floats(0, 3))
