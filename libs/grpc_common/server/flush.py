"""Holds back a stream's status until the kernel has sent its messages.

Right behind the last call on a connection that is older than max_connection_age C-core closes the
socket, and the kernel drops what it has not sent as soon as the client says anything more, as with a
WINDOW_UPDATE: the client gets UNAVAILABLE in the middle of a page. So a status follows its messages
once these have left.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from grpc_common.core.sockets import End, SendQueues

LARGE = 2**16
"""Bytes of a single response that may be under way for a while: as much as an HTTP/2 window is at first."""

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.064
"""Seconds between two looks at the kernel, which gives no event. Each pause is twice as long as the one
before, so that a fast client gets its status at once, and thousands of slow ones cost little."""

_PATIENCE = 30
"""Seconds. A client that takes longer for what the kernel holds may lose it; keepalive ends dead ones."""


class Flush:
    """Knows which clients get streams, and waits until the kernel has sent these.

    A stream runs inside `stream`, up to its last message, and `sent` comes before its status.
    """

    def __init__(self) -> None:
        self._streams: Counter[str] = Counter()
        self._queues = SendQueues()

    @contextmanager
    def stream(self, peer: str) -> Iterator[None]:
        """Count a stream to `peer`, as ServicerContext.peer has it, while the block runs."""
        self._streams[peer] += 1
        try:
            yield
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def sent(self, peer: str, within: float | None = None) -> None:
        """Wait until all that has been written to `peer` so far has left, for at most `within` seconds.

        What is written meanwhile, for other calls, is not waited for. It returns at once if another
        stream to the peer goes on, which will wait in turn; for a Unix socket, whose peers have no address;
        and where the kernel can't be asked, as on macOS.
        """
        if peer in self._streams or (remote := End.of_peer(peer)) is None:
            return
        before = self._queues.look(remote)
        if before is not None and before.unsent:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE if within is None else min(within, _PATIENCE)):
                    await self._left(remote, before.sent + before.unsent)

    async def _left(self, remote: End, written: int) -> None:
        pause = _FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            now = self._queues.look(remote)
            if now is None or not now.unsent or now.sent >= written:
                return
            pause = min(2 * pause, _LONGEST_PAUSE)
