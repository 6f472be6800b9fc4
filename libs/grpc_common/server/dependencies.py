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


@dataclass
class Dependency:
    """Something without which the server is not ready."""

    name: str
    probe: Probe
    """Raises an exception when the dependency can't be used."""

    interval: float
    """Seconds between two probes."""

    timeout: float
    """Seconds after which a probe has failed."""

    failures: int
    """How many probes fail in a row before the server is not ready: one alone may be chance."""

    ready: bool = field(default=False, init=False)
    _failed: int = field(default=0, init=False)
    _probing: asyncio.Task[str | None] | None = field(default=None, init=False)

    async def ask(self) -> bool:
        """Probe once, and return whether `ready` changed. It raises nothing, whatever the probe does."""
        was_ready = self.ready
        reason = await self._reason_for_failure()
        if reason is None:
            self._failed = 0
            self.ready = True
        else:
            self._failed += 1
            self.ready = self.ready and self._failed < self.failures
            log.warning("dependency failed", dependency=self.name, reason=reason, times=self._failed)
        return self.ready != was_ready

    async def _reason_for_failure(self) -> str | None:
        if self._probing and not self._probing.done():
            self._probing.cancel()  # again: there is never more than one probe at a time
            return "the probe before has not ended yet, although it was cancelled"
        # A task of its own, so that a probe that ignores its cancellation can be left behind.
        probing = self._probing = asyncio.create_task(_outcome(self.probe))
        try:
            await asyncio.wait([probing], timeout=self.timeout)
            if not probing.done():
                return f"no answer within {format_duration(self.timeout)}"
            return "the probe was cancelled" if probing.cancelled() else probing.result()
        finally:
            probing.cancel()


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
