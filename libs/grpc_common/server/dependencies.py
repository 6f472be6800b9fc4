"""What a server needs to do its work, such as a database: asked again and again in the background."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from grpc_common.config.durations import format_duration
from grpc_common.core.errors import excerpt

log = structlog.get_logger()

type Probe = Callable[[], Awaitable[object]]


SLOW = 2.0
"""Seconds after which an answer that has not come is slow: said in the log, but no failure yet."""

_AFTER_A_FAILURE = 1.0
"""Seconds until a dependency that failed is asked again, so that its return is soon seen."""


@dataclass
class Dependency:
    """Something that the server needs to do its work."""

    name: str
    probe: Probe
    """Raises an exception when the dependency can't be used."""

    interval: float
    """Seconds between two probes."""

    timeout: float
    """Seconds without an answer after which the dependency can't be used.

    An answer that is slow does not make it so: other replicas get slow ones, too, and if all of them were
    unready nobody would be served at all.
    """

    failures: int
    """How many probes fail in a row before the server is not ready: one alone may be chance."""

    required: bool = True
    """Whether the server is ready only with it."""

    up: bool = field(default=False, init=False)
    asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Whether it was asked once."""

    _failed: int = field(default=0, init=False)
    _probing: asyncio.Task[str | None] | None = field(default=None, init=False)

    @property
    def pause(self) -> float:
        """Seconds until the next probe."""
        return min(self.interval, _AFTER_A_FAILURE) if self._failed else self.interval

    async def ask(self) -> bool:
        """Probe once, and return whether `up` changed. It raises nothing, whatever the probe does."""
        was_up = self.up
        reason = await self._reason_for_failure()
        if reason is None:
            self._failed = 0
            self.up = True
        else:
            self._failed += 1
            self.up = self.up and self._failed < self.failures
            log.warning("dependency failed", dependency=self.name, reason=reason, times=self._failed)
        self.asked.set()
        return self.up != was_up

    async def _reason_for_failure(self) -> str | None:
        if self._probing and not self._probing.done():
            self._probing.cancel()  # again: there is never more than one probe at a time
            return "the probe before has not ended yet, although it was cancelled"
        # A task of its own, so that a probe that ignores its cancellation can be left behind.
        probing = self._probing = asyncio.create_task(_outcome(self.probe))
        try:
            if not await self._has_ended(probing):
                self.up = False
                return f"no answer within {format_duration(self.timeout)}"
            return "the probe was cancelled" if probing.cancelled() else probing.result()
        finally:
            probing.cancel()

    async def _has_ended(self, probing: asyncio.Task[str | None]) -> bool:
        """Wait for the end of a probe, as long as it may take; return whether it has come."""
        soon = min(SLOW, self.timeout)
        await asyncio.wait([probing], timeout=soon)
        if not probing.done() and soon < self.timeout:
            log.warning("dependency is slow", dependency=self.name, seconds=soon)
            await asyncio.wait([probing], timeout=self.timeout - soon)
        return probing.done()


async def _outcome(probe: Probe) -> str | None:
    """Run `probe`; return None, or why it failed."""
    try:
        answer = probe()
        if not inspect.isawaitable(answer):
            return (
                f"the probe returned {type(answer).__name__} instead of an awaitable; write it as async def"
            )
        await answer
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (SystemExit in a task would end the event loop)
        return _text_of(error)
    return None


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (a bug in the class of the error is not the reason)
        text = ""
    return excerpt(text) or type(error).__name__
