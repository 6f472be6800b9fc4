"""What chooses the subchannel of each call."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from grpc_common.client.resolver.endpoint import Endpoint


class Candidate(Protocol):
    """What a picker sees of a subchannel."""

    @property
    def endpoint(self) -> Endpoint:
        """Where its calls go."""

    @property
    def in_flight(self) -> int:
        """How many calls of this client are on it."""

    @property
    def ready_since(self) -> float:
        """When it became READY, by time.monotonic()."""


class Picker[C: Candidate](Protocol):
    """Chooses among the candidates that it was made for; all of them take calls."""

    def pick(self, tried: Collection[C] = ()) -> C:
        """Return the one for the next call: one that has not been tried for it, if there is any."""


type PickerFactory[C: Candidate] = Callable[[Sequence[C]], Picker[C]]
"""Makes the picker anew each time the set of candidates changes, which is never empty."""
