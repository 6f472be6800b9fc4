"""All candidates in turn, each as often as its weight says."""

from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from random import random

from grpc_common.client.balancer.picker import Candidate

type _Turn[C] = tuple[float, int, C, float]
"""When it is due, its place among those due at the same time, who has it, and the time to their next one."""


class RoundRobin[C: Candidate]:
    """Picks the candidate whose turn is due first; its next turn comes 1 / weight later.

    Equal weights give an exact round robin: of n picks each candidate gets one. After N picks a candidate
    with the share s of all weights has N * s of them, give or take 1 + n * s. The first turns are due at
    random, as if all had been in it forever: the clients of a fleet don't begin with the same endpoint,
    and nobody gets a burst when the set changes.

    (Earliest deadline first, as in grpc-go's and Envoy's weighted round robin.)
    """

    def __init__(self, candidates: Sequence[C]) -> None:
        self._places = count()
        periods = [1 / candidate.endpoint.weight for candidate in candidates]
        self._turns: list[_Turn[C]] = [
            (random() * period, next(self._places), candidate, period)  # noqa: S311 (no secret)
            for candidate, period in zip(candidates, periods, strict=True)
        ]
        heapify(self._turns)

    def pick(self, tried: Collection[C] = ()) -> C:
        """Return the first in turn that is not in `tried`; if all are, the first."""
        due, _, chosen, period = self._turns[0]
        if chosen in tried:
            return self._pass_over(tried)
        heapreplace(self._turns, (due + period, next(self._places), chosen, period))
        return chosen

    def _pass_over(self, tried: Collection[C]) -> C:
        """Those passed over are next, but save up no turns: a thousand retries must not end in a burst."""
        passed = []
        while self._turns and self._turns[0][2] in tried:
            passed.append(heappop(self._turns))
        if not self._turns:
            self._turns = passed  # in their order, hence a heap
            return self.pick()
        now = self._turns[0][0]
        chosen = self.pick()
        for _, _, candidate, period in passed:
            heappush(self._turns, (now, next(self._places), candidate, period))
        return chosen
