import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.balancer.least_request import LeastRequest
from grpc_common.client.balancer.round_robin import RoundRobin
from grpc_common.client.balancer.zones import prefer_zone
from grpc_common.client.resolver.endpoint import Endpoint


@dataclass(eq=False, slots=True)
class Server:
    """A candidate."""

    endpoint: Endpoint
    ready_since: float = 0
    in_flight: int = 0


def endpoints(zones, hints=None):
    """Return an endpoint for each letter: its zone, `-` for none, and the one it is meant for."""
    return [
        Endpoint(f"10.0.0.{n}:1", zone=zone.strip("-"), for_zones=tuple(hint.strip("-")))
        for n, (zone, hint) in enumerate(zip(zones, hints or "-" * len(zones), strict=True))
    ]


def shares(zone, known, ready=None, picks=20_000):
    """Return the part of the calls that each of the known endpoints gets, of which some are READY."""
    random.seed(1)
    servers = [Server(endpoint) for endpoint in (known if ready is None else ready)]
    picker = prefer_zone(zone, known, RoundRobin)(servers)
    got = Counter(picker.pick().endpoint for _ in range(picks))
    return [got[endpoint] / picks for endpoint in known]


def about(*parts):
    """Return what equals these parts of the calls, but for chance."""
    return pytest.approx(parts, abs=0.01)


def test_own_zone():
    """With a fair number of servers in its zone a client leaves all others alone."""
    assert shares("a", endpoints("aabbcc")) == [0.5, 0.5, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("zone", "known"),
    [
        ("", endpoints("aabb")),  # a client that doesn't know its zone
        ("", endpoints("aa--")),
        ("a", endpoints("----")),
        ("a", endpoints("aaaa")),
        ("a", endpoints("bbbb")),
        ("a", endpoints("bbcc")),
        ("", endpoints("aabb", "aabb")),
        ("a", endpoints("----", "bbcc")),
    ],
)
def test_nothing_to_prefer(zone, known):
    """Without a zone, or without a difference in it, the picker is the inner one itself."""
    assert type(prefer_zone(zone, known, RoundRobin)([Server(endpoint) for endpoint in known])) is RoundRobin


def test_few_ready_ones_in_the_zone():
    """Servers bear at most 1.4 times their share; the rest of the calls leaves the zone."""
    known = endpoints("aaaabbbb")
    assert shares("a", known, known[1:]) == about(0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0)
    assert shares("a", known, known[2:]) == about(0, 0, 0.35, 0.35, *[0.3 / 4] * 4)
    assert shares("a", known, known[3:]) == about(0, 0, 0, 0.35, *[0.65 / 4] * 4)
    assert shares("a", known, known[4:]) == [0, 0, 0, 0, *[1 / 4] * 4]
    known = endpoints("aaaaaabb")
    assert shares("a", known, known[4:]) == about(*[0] * 4, *[1.4 / 6] * 2, *[0.5 - 1.4 / 6] * 2)


def test_small_zone():
    """A zone with less than its part of all servers counts as one where some are not READY."""
    assert shares("a", endpoints("abbbbcccc")) == about(1.4 / 3, *[(1 - 1.4 / 3) / 8] * 8)
    assert shares("b", endpoints("abbbbcccc")) == [0, *[1 / 4] * 4, 0, 0, 0, 0]


def test_unknown_zones():
    """Servers without a zone belong to nobody's, and are spilled over to."""
    known = endpoints("ab----")
    assert shares("a", known) == about(1.4 / 3, *[(1 - 1.4 / 3) / 5] * 5)


def test_hints():
    """Hints on all endpoints overrule the zones, and say themselves how many servers a zone should have."""
    assert shares("a", endpoints("aabb", "bbba")) == [0, 0, 0, 1]
    assert shares("a", endpoints("abbbbb", "abbbbb")) == [1, 0, 0, 0, 0, 0]


def test_hints_of_which_few_are_ready():
    """A zone that few of its servers are READY for sends calls to the others, as it does without hints."""
    known = endpoints("bbbbcc", "aaaabb")
    assert shares("a", known, known[3:]) == about(0, 0, 0, 0.35, 0.65 / 2, 0.65 / 2)


@pytest.mark.parametrize("hints", ["bbb-", "bba-", "bbbb"])
def test_hints_of_no_use(hints):
    """Hints are ignored if an endpoint has none, or nobody is meant for the client's zone."""
    assert shares("a", endpoints("aabb", hints)) == [0.5, 0.5, 0, 0]


def test_newest_attributes():
    """What is known now of an address counts, not what was known when it was connected to."""
    known = endpoints("aabb")
    servers = [Server(Endpoint(endpoint.address)) for endpoint in known]
    picker = prefer_zone("a", known, RoundRobin)(servers)
    assert {picker.pick() for _ in range(4)} == set(servers[:2])


@given(
    st.lists(st.sampled_from("abc-"), min_size=1, max_size=12),
    st.data(),
    st.sampled_from([RoundRobin, LeastRequest]),
    st.integers(),
)
def test_tried_ones(zones, data, inner, seed):
    """One that was tried is never picked while another is there, in whatever zone; else one of them is."""
    random.seed(seed)
    hints = data.draw(st.lists(st.sampled_from("ab-"), min_size=len(zones), max_size=len(zones)))
    known = endpoints(zones, hints)
    ready = data.draw(st.sets(st.sampled_from(known), min_size=1))
    candidates = [Server(endpoint) for endpoint in ready]
    picker = prefer_zone("a", known, inner)(candidates)
    for tried in data.draw(st.lists(st.sets(st.sampled_from(candidates)), max_size=20)):
        chosen = picker.pick(tried)
        assert chosen in candidates
        assert chosen not in tried or tried == set(candidates)
