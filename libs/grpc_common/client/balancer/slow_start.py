"""A new server gets few calls at first, and more from second to second."""

from collections.abc import Callable, Collection, Sequence
from random import random
from time import monotonic

from grpc_common.client.balancer.picker import Candidate, Picker, PickerFactory

# Envoy's min_weight_percent.
_LEAST = 0.1


def slow_start[C: Candidate](
    window: float, inner: PickerFactory[C], clock: Callable[[], float] = monotonic
) -> PickerFactory[C]:
    """Return a factory of pickers that pick as those of `inner`, but seldom one that became READY just now.

    For servers that are slow at first: caches are empty, connection pools have to be filled. In the
    `window`, in seconds, a candidate's share grows evenly from a tenth to the whole (Envoy's
    slow_start_config with aggression 1). Candidates that all came at the same time share as without it.
    """

    def factory(candidates: Sequence[C]) -> Picker[C]:
        picker = inner(candidates)
        now = clock()
        new = [candidate for candidate in candidates if now < candidate.ready_since + window]
        if not new:
            return picker
        oldest = min(candidate.ready_since for candidate in candidates)
        return _SlowStart(new, oldest, window, picker, clock)

    return factory


class _SlowStart[C: Candidate]:
    """Lets a new candidate have only a part of its turns.

    The inner picker knows nothing of it: its weights stay as they are, so a candidate's share follows the
    clock at once, however far away its next turn is. At each turn a new candidate saves up its factor,
    and takes the turn that makes it a whole one: no dice, so no runs of luck. Factors are relative to that
    of the oldest candidate, or while all are new most turns would be refused in vain.
    """

    def __init__(
        self, new: Sequence[C], oldest: float, window: float, inner: Picker[C], clock: Callable[[], float]
    ) -> None:
        # Begins at random, or all clients of a fleet would take the same turn.
        self._saved = {candidate: random() for candidate in new}  # noqa: S311 (no secret)
        self._oldest = oldest
        self._window = window
        self._inner = inner
        self._clock = clock

    def pick(self, tried: Collection[C] = ()) -> C:
        """Return what the inner picker picks, or what it picks next."""
        chosen = self._inner.pick(tried)
        # Ends: a candidate refuses ten turns at most.
        while chosen in self._saved and not self._takes_turn(chosen):
            chosen = self._inner.pick(tried)
        return chosen

    def _takes_turn(self, candidate: C) -> bool:
        now = self._clock()
        if now >= candidate.ready_since + self._window:
            del self._saved[candidate]
            return True
        factor = self._factor(now - candidate.ready_since) / self._factor(now - self._oldest)
        saved = self._saved[candidate] + factor
        self._saved[candidate] = saved % 1
        return saved >= 1

    def _factor(self, age: float) -> float:
        return min(max(age / self._window, _LEAST), 1)
