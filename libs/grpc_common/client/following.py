"""Has a balancer follow the endpoints that a source finds."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from grpc_common.client.balancer.balancer import Balancer
from grpc_common.client.resolver.endpoint import Endpoint, EndpointSource

log = structlog.get_logger()

# Seconds until a source of endpoints that has failed is asked again.
_SOURCE_INTERVAL = 5.0


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
        self.target = target
        self._source = source
        self._balancer = balancer

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
                resolve_now()

    async def _follow_for_ever(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 (whatever it is, the channel serves on)
                self.error = error
                self.failed.set()
                log.warning(
                    "endpoints not followed, the last ones stay in use",
                    target=self.target,
                    reason=repr(error),
                )
            await asyncio.sleep(_SOURCE_INTERVAL)

    async def _follow(self) -> None:
        async for found in self._source.watch():
            self.error = None
            await self._balancer.update(_endpoints(found))
        raise RuntimeError("the source has ended")

    def reason(self) -> str:
        """Return why there is no endpoint, or why the last ones may be old; empty if nothing is wrong."""
        if self.error is not None:
            return str(self.error) or repr(self.error)
        reason: str = getattr(self._source, "reason", "")
        return reason


def _endpoints(found: Sequence[Endpoint | str]) -> list[Endpoint]:
    return [Endpoint(each) if isinstance(each, str) else each for each in found]
