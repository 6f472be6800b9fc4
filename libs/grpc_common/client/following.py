"""Has a balancer follow the endpoints that a source finds."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from grpc_common.client.balancer.balancer import Balancer
from grpc_common.client.resolver.endpoint import Endpoint, EndpointSource
from grpc_common.client.resolver.endpoint_check import checked
from grpc_common.core.background import is_cancelled

log = structlog.get_logger()

# Seconds until a source of endpoints that has failed is asked again.
_SOURCE_INTERVAL = 5.0

# In one line of the log.
_MOST_REASONS = 5


class Following:
    """Follows a source, whatever becomes of it: its last endpoints stay in use.

    Args:
        target: names the channel in the log.
        source: finds the endpoints.
        balancer: is told of them.

    """

    def __init__(self, target: str, source: EndpointSource, balancer: Balancer) -> None:
        self.error: Exception | None = None
        """Why the source can't be followed; None if it can."""
        self.failed = asyncio.Event()
        """Set once the source has failed before it has told any endpoints."""
        self.target = target
        self._source = source
        self._balancer = balancer
        self._refused: list[str] = []

    async def run(self) -> None:
        """Follow the source; never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_for_ever())
            group.create_task(self._hint())

    async def _hint(self) -> None:
        """Tell the source that connections are lost: it may look for other endpoints at once."""
        resolve_now: Callable[[], object] | None = getattr(self._source, "resolve_now", None)
        while resolve_now is not None:
            await self._balancer.wait_for_change()
            if not self._balancer.all_ready():
                with suppress(Exception):  # it is a hint, and the source is followed all the same
                    resolve_now()

    async def _follow_for_ever(self) -> None:
        while True:
            try:
                await self._follow()
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                self._fail(RuntimeError("the source was cancelled"))
            except Exception as error:  # noqa: BLE001 (whatever it is, the channel serves on)
                self._fail(error)
            await asyncio.sleep(_SOURCE_INTERVAL)

    async def _follow(self) -> None:
        async for found in self._source.watch():
            self.error = None
            await self._take(found)
            if is_cancelled():  # the source has swallowed it
                raise asyncio.CancelledError
            await asyncio.sleep(0)  # calls go on with a source that never pauses
        raise RuntimeError("the source has ended")

    async def _take(self, found: Sequence[Endpoint | str]) -> None:
        """Use the endpoints that make sense; if none of them does, the last ones stay."""
        endpoints, refused = checked(found)
        if refused and refused != self._refused:
            log.warning(
                "endpoints left out",
                target=self.target,
                reasons=refused[:_MOST_REASONS],
                count=len(refused),
            )
        self._refused = refused
        if endpoints or not refused:
            await self._balancer.update(endpoints)

    def _fail(self, error: Exception) -> None:
        self.error = error
        if not self._balancer.is_known:
            self.failed.set()
        log.warning(
            "endpoints not followed, the last ones stay in use", target=self.target, reason=repr(error)
        )

    def reason(self) -> str:
        """Return why there is no endpoint, or why the last ones may be old; empty if nothing is wrong."""
        if self.error is not None:
            return str(self.error) or repr(self.error)
        if self._refused and not self._balancer.is_known:
            return f"none of the endpoints makes sense, the first: {self._refused[0]}"
        reason: str = getattr(self._source, "reason", "")
        return reason
