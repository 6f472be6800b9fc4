"""The end of the last stream on a connection, which must not come before its messages have left.

Right behind the last call on a connection that is older than max_connection_age C-core closes the
socket, and the kernel drops what is unsent as soon as the client says anything more, as with a
WINDOW_UPDATE: the client gets UNAVAILABLE in the middle of a page. So a status follows its messages
once the kernel has nothing unsent.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from grpc_common.core.sockets import unsent

_INTERVAL = 0.005
"""Seconds between two looks, each of which takes a tenth of it."""

_PATIENCE = 30
"""Seconds. A client that takes longer for what the kernel holds may lose it; keepalive ends dead ones."""


class Streams:
    """The streams of responses that go on, by the peer that gets them."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    @contextmanager
    def running(self, peer: str) -> Iterator[None]:
        """Count one to `peer`, as ServicerContext.peer has it."""
        self._running[peer] += 1
        try:
            yield
        finally:
            self._running[peer] -= 1
            if not self._running[peer]:
                del self._running[peer]

    async def sent(self, peer: str) -> None:
        """Wait until what was written to `peer` is on its way.

        It returns at once if another stream to the peer goes on, which will wait in turn, for a Unix
        socket, which loses nothing, and where the kernel can't be asked, as on macOS.
        """
        port = re.search(r"^ipv[46]:.*:(\d+)$", peer)
        if port is None or peer in self._running:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while unsent(int(port[1])):  # noqa: ASYNC110 (the kernel gives no event)
                    await asyncio.sleep(_INTERVAL)
