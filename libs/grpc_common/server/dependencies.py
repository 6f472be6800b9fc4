"""What a server needs to do its work, such as a database: asked again and again in the background."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import structlog

from grpc_common.config.durations import format_duration
from grpc_common.core.errors import excerpt

log = structlog.get_logger()

_AFTER_A_FAILURE = 1.0
"""Seconds until what failed is asked again, so that its end and its return are soon seen."""

type Probe = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Failure:
    """Why a probe did not succeed."""

    reason: str
    answered: bool = True
    """Whether that is the dependency's answer; without one it may be slow, or gone."""


@dataclass
class Dependency:
    """Something that the server uses, and whether it is up.

    What answers late is slow, and still up: replicas that share a database see it slow at the same moment,
    and if they all left for that, a degradation would be an outage.
    """

    name: str
    probe: Probe
    """Raises an exception when the dependency can't be used; a TimeoutError says that it has not answered."""

    interval: float
    """Seconds between two probes."""

    timeout: float
    """Seconds after which an answer is late."""

    failures: int
    """How many probes fail in a row before it is down: one alone may be chance."""

    patience: float = 30
    """Seconds until a probe without an answer is given up; it is down if the next has none in time."""

    required: bool = True
    """Whether the server is ready only while it is up."""

    up: bool = field(default=False, init=False)
    slow: bool = field(default=False, init=False)
    """Whether it is up, but its last answer was late or the next one is."""

    _failed: int = field(default=0, init=False)
    _unanswered_since: float | None = field(default=None, init=False)
    _probing: asyncio.Task[Failure | None] | None = field(default=None, init=False)
    _began: float = field(default=0, init=False)
    _given_up: bool = field(default=False, init=False)

    async def ask(self) -> bool:
        """Probe once, and return whether `up` changed. It raises nothing, whatever the probe does.

        A late answer is not waited for: the next `ask` goes on with the same probe.
        """
        was_up = self.up
        failure = await self._answer()
        if failure is None:
            self._take_success()
        elif failure.answered:
            self._take_failure(failure.reason)
        else:
            self._take_silence(failure.reason)
        return self.up != was_up

    @property
    def pause(self) -> float:
        """Seconds until the next `ask`: none while an answer is waited for."""
        if self._is_probing() and not self._given_up:
            return 0
        return min(self.interval, _AFTER_A_FAILURE) if self._failed else self.interval

    def stop(self) -> None:
        """Cancel the probe that has not ended, if there is one."""
        if self._probing:
            self._probing.cancel()

    def _take_success(self) -> None:
        took = time.monotonic() - self._began
        self.slow = took > self.timeout
        if self.slow:
            log.info("dependency answered late", dependency=self.name, after=format_duration(took))
        self._failed, self._unanswered_since, self.up = 0, None, True

    def _take_failure(self, reason: str) -> None:
        self._failed += 1
        self._unanswered_since = None
        self.up = self.up and self._failed < self.failures
        self.slow = False
        log.warning("dependency failed", dependency=self.name, reason=reason, times=self._failed)

    def _take_silence(self, reason: str) -> None:
        if self._unanswered_since is None:
            self._unanswered_since = self._began
        # A probe may hang on a connection that is lost: once it is given up, the next one decides.
        if not self._given_up and time.monotonic() - self._unanswered_since >= self.patience:
            self.up = False
        self.slow = self.up
        log.warning("dependency has not answered", dependency=self.name, reason=reason, up=self.up)

    def _is_probing(self) -> bool:
        return self._probing is not None and not self._probing.done()

    async def _answer(self) -> Failure | None:
        """Wait for the outcome of the probe that runs, or of a new one, but not for a late one."""
        if self._probing is None or self._probing.done():
            # A task of its own, so that a probe that ignores its cancellation can be left behind.
            self._probing = asyncio.create_task(_outcome(self.probe))
            self._began, self._given_up = time.monotonic(), False
            limit = self.timeout
        elif self._given_up:
            self.stop()  # again: there is never more than one probe at a time
            return Failure("the probe before has not ended yet, although it was cancelled")
        else:
            limit = self.patience
        await asyncio.wait([self._probing], timeout=self._began + limit - time.monotonic())
        if self._probing.done():
            return Failure("the probe was cancelled") if self._probing.cancelled() else self._probing.result()
        if limit == self.patience:
            self._given_up = True
            self.stop()
        return Failure(f"no answer within {format_duration(limit)}", answered=False)


async def _outcome(probe: Probe) -> Failure | None:
    """Run `probe`; return None, or why it failed."""
    try:
        answer = probe()
        if not inspect.isawaitable(answer):
            what = type(answer).__name__
            return Failure(f"the probe returned {what} instead of an awaitable; write it as async def")
        await answer
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (SystemExit in a task would end the event loop)
        return Failure(_text_of(error), answered=not _is_timeout(error))
    return None


def _is_timeout(error: BaseException) -> bool:
    """Return whether an exception, or what it was raised from, says that no answer has come in time."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (a bug in the class of the error is not the reason)
        text = ""
    return excerpt(text) or type(error).__name__
