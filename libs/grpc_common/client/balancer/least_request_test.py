import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.balancer.least_request import LeastRequest
from grpc_common.client.balancer.round_robin import RoundRobin
from grpc_common.client.resolver.endpoint import Endpoint


@dataclass(eq=False, slots=True)
class Server:
    """A candidate."""

    endpoint: Endpoint
    in_flight: int = 0
    ready_since: float = 0


def servers(*in_flight):
    """Return a candidate for each number of calls in flight."""
    return [Server(Endpoint(f"10.0.0.{n}:1"), calls) for n, calls in enumerate(in_flight)]


def shares(candidates, picks):
    """Return how many of the picks each candidate gets while the calls in flight stay as they are."""
    picker = LeastRequest(candidates)
    got = Counter(picker.pick() for _ in range(picks))
    return [got[candidate] / picks for candidate in candidates]


SEEDS = st.integers()
SERVERS = st.lists(st.integers(0, 9), min_size=1, max_size=20).map(lambda in_flight: servers(*in_flight))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), SEEDS)
def test_idle_client(weights, seed):
    """With nothing in flight it picks exactly as round robin does."""
    candidates = [Server(Endpoint(f"10.0.0.{n}:1", weight=weight)) for n, weight in enumerate(weights)]
    random.seed(seed)
    in_turn = RoundRobin(candidates)
    random.seed(seed)
    picker = LeastRequest(candidates)
    for _ in range(100):
        assert picker.pick() is in_turn.pick()


@given(st.integers(1, 20), st.integers(1, 9), SEEDS)
def test_equally_busy_ones(n, in_flight, seed):
    """Among equally busy ones n picks are one for each."""
    random.seed(seed)
    candidates = servers(*[in_flight] * n)
    picker = LeastRequest(candidates)
    assert Counter(picker.pick() for _ in candidates) == Counter(candidates)


@given(SERVERS, st.data(), SEEDS)
def test_tried_ones(candidates, data, seed):
    """One that was tried is never picked while another is there; else one of them is."""
    random.seed(seed)
    picker = LeastRequest(candidates)
    for tried in data.draw(st.lists(st.sets(st.sampled_from(candidates)), max_size=20)):
        chosen = picker.pick(tried)
        assert chosen in candidates
        assert chosen not in tried or tried == set(candidates)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=20), st.booleans(), SEEDS)
def test_busiest_of_two(others, last, seed):
    """With two the less busy one gets all calls; with more the busiest one gets none."""
    random.seed(seed)
    candidates = servers(*others, 9) if last else servers(9, *others)
    busiest = candidates[-1 if last else 0]
    picker = LeastRequest(candidates)
    assert busiest not in [picker.pick() for _ in range(100)]


def test_busy_one_among_less_busy_ones():
    """The busier a candidate is among the others, the fewer calls it gets."""
    random.seed(1)
    got = shares(servers(1, 3, 5, 7, 9), 5000)
    assert got == sorted(got, reverse=True)


def test_most_that_one_gets():
    """The only idle one among busy ones gets no more than twice its share."""
    random.seed(1)
    got = shares(servers(0, 9, 9, 9, 9, 9, 9, 9, 9, 9), 10_000)
    assert 0.18 < got[0] < 0.22


def test_weight_of_calls_in_flight():
    """A server with ten times the weight may have ten times the calls in flight."""
    candidates = [Server(Endpoint("10.0.0.1:1", weight=10), 9), Server(Endpoint("10.0.0.2:1"), 1)]
    assert shares(candidates, 1000)[0] == 1
    candidates[0].in_flight = 19
    got = shares(candidates, 1100)
    assert abs(got[0] - 10 / 11) < 0.01
