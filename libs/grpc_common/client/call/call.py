"""One call of a stub, from its start to its end, over as many attempts as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import structlog

from grpc_common.client.balancer.subchannel import Subchannel
from grpc_common.client.call.calls import Calls
from grpc_common.client.call.errors import end_of, rpc_error
from grpc_common.client.call.interception import intercepted
from grpc_common.client.call.progress import Progress
from grpc_common.client.call.requests import Requests, check_metadata
from grpc_common.client.call.retry import PREVIOUS_ATTEMPTS, Retries, reached_no_server
from grpc_common.core.calls import Call, CallType
from grpc_common.core.errors import StatusError

log = structlog.get_logger()

type Start = Callable[..., Any]
"""Starts an attempt, with the arguments of grpc.aio's multi-callables, and returns its call."""

_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN

_MOST_UNSENT = 5
"""How often a call that no server has seen is made on another endpoint, beside its retries."""

_LATE = 1.0
"""Seconds after the deadline in which C-core must end an attempt; one that it can't send never ends."""


class ClientCall(Progress):
    """What is behind the call that a stub's caller holds: a task makes its attempts.

    Args:
        calls: what it has in common with the others of its channel.
        call: what observers and interceptors are told of.
        bind: returns what starts an attempt on a subchannel.
        request: a request, or a stream of them; None for a stream that the caller writes.
        retries: of this call alone.
        streams: whether there is more than one response, so that it is not `response` that has them.
        wait_for_ready: whether it waits for an endpoint as long as its deadline allows.
        options: further arguments of an attempt.

    """

    def __init__(
        self,
        calls: Calls,
        call: Call,
        bind: Callable[[Subchannel], Start],
        request: Any,
        retries: Retries,
        *,
        streams: bool,
        wait_for_ready: bool,
        options: dict[str, Any],
    ) -> None:
        assert call.deadline is not None
        super().__init__(call.deadline)
        self._calls = calls
        self._call = call
        self._bind = bind
        self._request = request
        self._retries = retries
        self._streams = streams
        self._wait_for_ready = wait_for_ready
        self._options = options
        self._is_aborted = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the call; it is on its way when this returns, unless it must wait."""
        self._calls.begun(self)
        self._calls.observers.started(self._call)
        self._task = asyncio.Task(self._drive(), loop=self._loop, eager_start=True)
        if self._is_aborted:  # by an interceptor
            self._task.cancel()

    async def _drive(self) -> None:
        error: BaseException | None = None
        try:
            if self._calls.interceptors:
                await intercepted(self._calls.interceptors, self._call, self.deadline, self._run)
            else:
                await self._run()
        except asyncio.CancelledError:
            error = rpc_error(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except KeyboardInterrupt:
            self.cancel()
            raise
        except BaseException as caught:  # noqa: BLE001 (who waits for the call gets it)
            error = caught
        self._finish(error)

    async def _run(self) -> None:
        try:
            error: BaseException | None = await self._attempts()
        except Exception as caught:  # noqa: BLE001 (as above)
            error = caught
        if self._streams:  # its caller does not wait for interceptors
            self._finish(error)
            error = self.error
        if error is not None:
            raise error

    async def _attempts(self) -> grpc.aio.AioRpcError | None:
        """Make one attempt after the other; return the error of the last one."""
        if self._calls.is_closing:
            raise self._calls.closed()
        tried: list[Subchannel] = []
        while True:
            subchannel = self._calls.balancer.pick(tried) or await self._wait_for_subchannel(tried)
            error = await self._attempt_on(subchannel)
            if error is None:
                self._retries.succeeded()
                return None
            tried.append(subchannel)
            wait = self._wait_after(error, tried) if self._can_be_made_again() else None
            if wait is None:
                return error
            if wait:
                await asyncio.sleep(wait)

    async def _attempt_on(self, subchannel: Subchannel) -> grpc.aio.AioRpcError | None:
        error: BaseException | None = None
        left = self.deadline - self._loop.time()
        if left <= 0:  # C-core would send it, and whether the answer or the deadline wins is chance
            return rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        subchannel.begin()
        try:
            start = self._bind(subchannel)
            self.attempt = start(
                None if isinstance(self._request, Requests) else self._request,
                timeout=left,
                metadata=self._metadata(),
                **self._options,
            )
            if isinstance(self._request, Requests):
                self._request.send_to(self.attempt)
            self.moved()
            error = await self._end_of_attempt()
        except BaseException as caught:
            error = caught
            raise
        finally:
            subchannel.end(is_ok=error is None)
        return error

    async def _end_of_attempt(self) -> grpc.aio.AioRpcError | None:
        if self._streams:
            try:
                async with asyncio.timeout_at(self.deadline + _LATE):
                    return await end_of(self.attempt)
            except TimeoutError:
                self.attempt.cancel()
                return rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "the call was not sent in time")
        end = end_of(self.attempt) if self._call.method.type is CallType.CLIENT_STREAM else None
        try:
            self.response = await self.attempt
        except grpc.aio.AioRpcError as error:
            return error if end is None else await end
        return None

    def _metadata(self) -> list[tuple[str, str | bytes]]:
        check_metadata(self._call.metadata)
        if not self._retries.made:
            return self._call.metadata
        return [*self._call.metadata, (PREVIOUS_ATTEMPTS, str(self._retries.made))]

    async def _wait_for_subchannel(self, tried: list[Subchannel]) -> Subchannel:
        scope = asyncio.timeout_at(self.deadline)
        try:
            async with scope:
                while (found := self._subchannel(tried)) is None:
                    await self._calls.balancer.wait_for_change()
                return found
        except TimeoutError:
            if not scope.expired():
                raise
            text = f"{self._calls.target} was not ready within {self._call.deadline:g} s"
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None

    def _subchannel(self, tried: list[Subchannel]) -> Subchannel | None:
        balancer = self._calls.balancer
        if picked := balancer.pick(tried):
            return picked
        state = balancer.state()
        if state is _SHUTDOWN:
            raise self._calls.closed()
        if state is not _FAILURE or self._wait_for_ready:
            return None
        if failing := balancer.failing():
            return failing
        text = f"{self._calls.target} has no endpoint that is ready{self._why()}"
        raise rpc_error(grpc.StatusCode.UNAVAILABLE, text)

    def _why(self) -> str:
        reason = self._calls.reason()
        return f": {reason}" if reason else ""

    def _wait_after(self, error: grpc.aio.AioRpcError, tried: list[Subchannel]) -> float | None:
        """Return the seconds until the next attempt; None if there is none."""
        if reached_no_server(error, tried[-1]) and self._may_go_elsewhere(tried):
            return 0
        wait = self._retries.wait_after(error)
        if wait is None or self._loop.time() + wait >= self.deadline:
            return None
        return wait

    def _can_be_made_again(self) -> bool:
        if self.is_committed:
            return False
        return not isinstance(self._request, Requests) or self._request.take_back()

    def _may_go_elsewhere(self, tried: list[Subchannel]) -> bool:
        if self._wait_for_ready:
            return True
        return len(tried) <= _MOST_UNSENT and self._calls.balancer.state() is not _FAILURE

    def _finish(self, error: BaseException | None) -> None:
        if self.is_done:
            self._too_late(error)
            return
        if isinstance(self._request, Requests):
            own = self._request.error
            if error is not None and isinstance(own, Exception) and not self._is_aborted:
                error = own
            self._request.close()
        self.over(error.with_traceback(None) if isinstance(error, grpc.aio.AioRpcError) else error)
        self._call.code = self.code()
        self._calls.ended(self)
        self._calls.observers.ended(self._call)
        self.tell_end()

    def _too_late(self, error: BaseException | None) -> None:
        """Log what interceptors have made of the end of a call whose caller has seen another one."""
        if error is None or error is self.error or self._is_aborted:
            return
        if error.__cause__ is None or isinstance(error.__cause__, StatusError):  # a bug is logged already
            log.error("interceptor failed after its call", method=self._call.method.path, exc_info=error)

    def cancel(self) -> bool:
        """End the call because its caller wants no more of it; return whether it had not ended."""
        if self.is_done:
            return False
        self.is_cancelled = True
        self.abort(rpc_error(grpc.StatusCode.CANCELLED, "Locally cancelled by application!"))
        return True

    def abort(self, error: Exception) -> None:
        """End the call at once, with an error."""
        if self.is_done:
            return
        self._is_aborted = True
        self._finish(error)
        if self.attempt is not None:
            self.attempt.cancel()
        if self._task is not None:
            self._task.cancel()

    def check_writer(self) -> None:
        """Raise UsageError if an iterator has the requests."""
        if isinstance(self._request, Requests):
            raise grpc.aio.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")

    def forget(self) -> None:
        """Cancel the call from a finalizer: that may run in any thread, and in the midst of any code."""
        if not self.is_done:
            with suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self.cancel)
