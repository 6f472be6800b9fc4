"""What the metrics, and the doctor, tell of a channel."""

import time
from typing import Any

from grpc_common.client.balancer.balancer import Balancer
from grpc_common.client.resolver.endpoint import EndpointSource
from grpc_common.observe.channel_metrics import ChannelNumbers


class OpenChannel:
    """A channel as the metrics see it.

    Args:
        target: where it leads.
        balancer: has its connections.
        source: has found the endpoints; see SourceStatus for what it may tell.

    """

    def __init__(self, target: str, balancer: Balancer, source: EndpointSource) -> None:
        self.target = target
        self._balancer = balancer
        self._source: Any = source
        self._opened_at = time.monotonic()

    @property
    def numbers(self) -> ChannelNumbers:
        """What it has counted."""
        return self._balancer.numbers

    def states(self) -> dict[str, str]:
        """Return the state of each endpoint that it connects to, by address."""
        return self._balancer.states()

    def known_at(self) -> float | None:
        """Return when its endpoints were last known to be right; None if they never change.

        A source that has not said anything yet has been silent since the channel was opened.
        """
        if not hasattr(self._source, "updated"):
            return None
        updated: float | None = self._source.updated
        return self._opened_at if updated is None else updated
