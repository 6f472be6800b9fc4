from collections import Counter
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.balancer.subsetting import subset
from grpc_common.client.resolver.endpoint import Endpoint


def endpoints(n):
    """Return n endpoints."""
    return [Endpoint(f"10.0.{i // 256}.{i % 256}:50051") for i in range(n)]


def clients_of(fleet, size, clients):
    """Return how many of the clients each endpoint has."""
    taken = Counter(endpoint for client in clients for endpoint in subset(fleet, size, client))
    return [taken[endpoint] for endpoint in fleet]


FLEETS = st.integers(1, 150).map(endpoints)
SIZES = st.integers(1, 160)
CLIENTS = st.one_of(st.integers(0, 10**9).map(lambda n: f"web-{n}"), st.text())


@given(FLEETS, SIZES, CLIENTS)
def test_size(fleet, size, client):
    """A client takes as many endpoints as it is told to, each once, or all."""
    taken = subset(fleet, size, client)
    assert len(set(taken)) == len(taken) == min(size, len(fleet))
    assert set(taken) <= set(fleet)


@given(FLEETS, SIZES, CLIENTS, st.randoms())
def test_order(fleet, size, client, random):
    """The order in which the endpoints are known does not matter."""
    shuffled = fleet.copy()
    random.shuffle(shuffled)
    assert set(subset(shuffled, size, client)) == set(subset(fleet, size, client))


@given(FLEETS, SIZES, CLIENTS, st.data())
def test_one_goes_or_comes(fleet, size, client, data):
    """One endpoint that goes or comes makes a client exchange two at most."""
    gone = data.draw(st.sampled_from(fleet))
    before = set(subset(fleet, size, client))
    after = set(subset([endpoint for endpoint in fleet if endpoint != gone], size, client))
    assert len(before - after) <= 2
    assert len(after - before) <= 2


@pytest.mark.parametrize("size", [20, 60, 100])
def test_evenness_in_a_large_fleet(size):
    """A StatefulSet's 50 pods spread over 1000 endpoints to within one of the mean."""
    mean = 50 * size / 1000
    counts = clients_of(endpoints(1000), size, [f"web-{n}" for n in range(50)])
    assert min(counts) >= floor(mean) - 1
    assert max(counts) <= ceil(mean) + 1


@given(FLEETS, SIZES, st.integers(1, 60), st.text(alphabet="abc-"))
def test_evenness(fleet, size, clients, name):
    """With any number of a StatefulSet's pods no endpoint has four clients more or fewer than the mean."""
    counts = clients_of(fleet, size, [f"{name}-{n}" for n in range(clients)])
    mean = clients * min(size / len(fleet), 1)
    assert max(abs(count - mean) for count in counts) < 4


def test_evenness_of_a_deployment():
    """Pods without a number spread as at random: with enough of them every endpoint has some."""
    counts = clients_of(endpoints(100), 20, [f"web-7d4b9c6f5-x{n:x}z" for n in range(100)])
    assert min(counts) > 5
    assert max(counts) < 40


def test_names():
    """Two sets of clients begin at different points."""
    fleet = endpoints(1000)
    assert not set(subset(fleet, 10, "web-0")) & set(subset(fleet, 10, "api-0"))


@pytest.mark.parametrize("client", ["web-1", "web"])
def test_every_process(client):
    """All processes and versions agree, or a fleet would be even only until it is updated."""
    expected = {
        "web-1": ["10.0.0.8:50051", "10.0.0.3:50051", "10.0.0.4:50051"],
        "web": ["10.0.0.1:50051", "10.0.0.8:50051", "10.0.0.3:50051"],
    }
    assert [endpoint.address for endpoint in subset(endpoints(20), 3, client)] == expected[client]
