"""All candidates in turn, but a less busy one rather than a busy one."""

from collections.abc import Collection, Sequence
from random import random

from grpc_common.client.balancer.picker import Candidate
from grpc_common.client.balancer.round_robin import RoundRobin


class LeastRequest[C: Candidate]:
    """Picks the next in turn, unless a random other one has fewer calls of this client in flight.

    A slow server gathers calls and so gets fewer new ones. It is the power of two choices
    (Mitzenmacher 2001; LEAST_REQUEST of Envoy and of gRFC A48, which take both at random) with the round
    robin's next as the first choice: a client with nothing in flight spreads its calls exactly as
    RoundRobin does, instead of at random.

    With equal weights nobody gets more than about twice its share: its own turns, and being the other one.
    This bounds what a server attracts that fails fast, and so is never busy; outlier detection is against
    those.
    """

    def __init__(self, candidates: Sequence[C]) -> None:
        self._candidates = candidates
        self._others = len(candidates) - 1
        self._in_turn = RoundRobin(candidates)

    def pick(self, tried: Collection[C] = ()) -> C:
        """Return the less busy of two that are not in `tried`; if all are, the next in turn."""
        first = self._in_turn.pick(tried)
        if not first.in_flight:
            return first
        other = self._candidates[int(random() * self._others)]  # noqa: S311 (no secret)
        if other is first:  # all others are as likely as each other
            other = self._candidates[-1]
        return other if other not in tried and _load(other) < _load(first) else first


def _load(candidate: Candidate) -> float:
    """How busy it would be with one more call; without the one, weights would mean nothing to idle ones."""
    return (candidate.in_flight + 1) / candidate.endpoint.weight
