import random
from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.balancer.round_robin import RoundRobin
from grpc_common.client.resolver.endpoint import Endpoint


@dataclass(eq=False, slots=True)
class Server:
    """A candidate."""

    endpoint: Endpoint
    in_flight: int = 0
    ready_since: float = 0


def servers(*weights):
    """Return a candidate for each weight."""
    return [Server(Endpoint(f"10.0.0.{n}:1", weight=weight)) for n, weight in enumerate(weights)]


SEEDS = st.integers()
EQUAL = st.integers(1, 30).map(lambda n: servers(*[1.0] * n))
WEIGHTED = st.lists(st.floats(0.01, 100), min_size=1, max_size=20).map(lambda weights: servers(*weights))


@given(EQUAL, st.integers(0, 100), SEEDS)
def test_equal_weights(candidates, before, seed):
    """Of n picks in a row, wherever they begin, each candidate gets one."""
    random.seed(seed)
    picker = RoundRobin(candidates)
    for _ in range(before):
        picker.pick()
    assert Counter(picker.pick() for _ in candidates) == Counter(candidates)


@given(WEIGHTED, st.integers(1, 500), SEEDS)
def test_weights(candidates, picks, seed):
    """Each candidate has its share at every time, not only in the long run."""
    random.seed(seed)
    picker = RoundRobin(candidates)
    got = Counter(picker.pick() for _ in range(picks))
    total = sum(candidate.endpoint.weight for candidate in candidates)
    for candidate in candidates:
        share = candidate.endpoint.weight / total
        assert abs(got[candidate] - picks * share) <= 1 + len(candidates) * share + 1e-6


@given(WEIGHTED, st.data(), SEEDS)
def test_tried_ones(candidates, data, seed):
    """One that was tried is never picked while another is there; else one of them is."""
    random.seed(seed)
    picker = RoundRobin(candidates)
    for tried in data.draw(st.lists(st.sets(st.sampled_from(candidates)), max_size=20)):
        chosen = picker.pick(tried)
        assert chosen in candidates
        assert chosen not in tried or tried == set(candidates)


@given(st.integers(2, 30), st.data(), SEEDS)
def test_turns_passed_over(n, data, seed):
    """Who is passed over, once or a thousand times, comes next, and only once."""
    random.seed(seed)
    candidates = servers(*[1.0] * n)
    picker = RoundRobin(candidates)
    tried = data.draw(st.sets(st.sampled_from(candidates), min_size=1, max_size=n - 1))
    for _ in range(data.draw(st.sampled_from([1000, n]))):
        picker.pick(tried)
    picks = [picker.pick() for _ in candidates]
    assert set(picks[: len(tried)]) == tried
    assert set(picks) == set(candidates)


def test_first_picks():
    """The clients of a fleet begin with different candidates, with each as often as with the others."""
    candidates = servers(1, 1, 1, 1)
    first = Counter(RoundRobin(candidates).pick() for _ in range(4000))
    assert all(800 < first[candidate] < 1200 for candidate in candidates)


def test_no_burst_for_who_joins():
    """One that joins gets its share of the next calls, however many there have been."""
    old = servers(1, 1, 1)
    picker = RoundRobin(old)
    for _ in range(10_000):
        picker.pick()
    new = replace(old[0])
    picker = RoundRobin([*old, new])
    assert Counter(picker.pick() for _ in range(400))[new] == 100
