"""What a server has been called with, or a channel has called."""

import asyncio

from grpc_health.v1 import health

from grpc_common.core.calls import Call

_PATIENCE = 10.0
"""Seconds in which a call ends whose answer the test has, on a busy machine too."""


class RecordedCalls:
    """An observer that keeps the calls of a server or a channel: `observers=[recorded]`.

    Those to gRPC's health service are left out, since channels and probes make them on their own.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        """Every call from its start, the first one first; its `code` is None until it has ended."""
        self._ended: list[Call] = []
        self._changed = asyncio.Event()

    def started(self, call: Call) -> None:
        """Keep a call that begins."""
        if call.method.service != health.SERVICE_NAME:
            self.calls.append(call)

    def ended(self, call: Call) -> None:
        """Keep that it has ended."""
        if call.method.service != health.SERVICE_NAME:
            self._ended.append(call)
            self._changed.set()

    async def until_ended(self, count: int = 1) -> list[Call]:
        """Return the calls that have ended, in that order, once there are `count` of them.

        A server's call ends when its status has left, which may be after the client has the answer.

        Raises:
            TimeoutError: there are fewer after 10 s.

        """
        try:
            async with asyncio.timeout(_PATIENCE):
                while len(self._ended) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            what = f"{len(self._ended)} of {len(self.calls)} calls have ended within {_PATIENCE:g} s"
            raise TimeoutError(f"{what}; the test waits for {count}") from None
        return [*self._ended]
