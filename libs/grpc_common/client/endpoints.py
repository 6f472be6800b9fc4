"""Where the addresses of a service come from."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol


class EndpointSource(Protocol):
    """Knows the endpoints of one service and follows their changes."""

    def watch(self) -> AsyncIterator[Sequence[str]]:
        """Yield the full current set of addresses, first at once and then each time it changes.

        An address is `ip:port`, with an IPv6 address in brackets: `10.0.0.7:50051`,
        `[fd00::7]:50051`. An empty set means that no endpoint is ready. The source puts changes
        that follow each other closely together (debounce) and sees to its own reconnects: once
        it has yielded, the channel keeps the last set until the next one.
        """
