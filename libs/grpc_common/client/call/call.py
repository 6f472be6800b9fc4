"""One call of a stub, from its start to its end, over as many attempts as it takes.

Most unary calls have one attempt, which begins at once and ends well: they need no task of their own. All
others, which stream, wait, fail or have interceptors, are driven by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import structlog

from grpc_common.client.balancer.subchannel import Subchannel
from grpc_common.client.call.calls import Calls
from grpc_common.client.call.errors import code_of, details_of, end_of, rpc_error
from grpc_common.client.call.interception import intercepted
from grpc_common.client.call.progress import Progress
from grpc_common.client.call.requests import Requests, check_metadata
from grpc_common.client.call.retry import PREVIOUS_ATTEMPTS, Retries, reached_no_server
from grpc_common.core.background import is_cancelled
from grpc_common.core.calls import Call, CallType
from grpc_common.core.errors import StatusError

log = structlog.get_logger()

type Start = Callable[..., Any]
"""Starts an attempt, with the arguments of grpc.aio's multi-callables, and returns its call."""

_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE

_MOST_UNSENT = 5
"""How often a call that no server has seen is made on another endpoint, beside its retries."""

_CANCELLED = "Locally cancelled by application!"
"""What grpc.aio says of a call that this process has cancelled."""

_LATE = 1.0
"""Seconds after the deadline in which C-core must end an attempt; one that it can't send never ends."""


class ClientCall(Progress):
    """What is behind the call that a stub's caller holds.

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
        options: Mapping[str, Any],
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
        subchannel = self._calls.balancer.pick() if self._needs_no_task() else None
        if subchannel is not None:
            self._begin_alone(subchannel)
            return
        self._task = asyncio.Task(self._drive(None), loop=self._loop, eager_start=True)
        if self._is_aborted:  # by an interceptor
            self._task.cancel()

    def _needs_no_task(self) -> bool:
        is_plain = self._call.method.type is CallType.UNARY and not self._calls.interceptors
        return is_plain and not self._calls.is_closing and self._loop.time() < self.deadline

    def _begin_alone(self, subchannel: Subchannel) -> None:
        """Make the first attempt without a task."""
        subchannel.begin()
        try:
            self._start(subchannel)
        except Exception as error:  # noqa: BLE001 (who waits for the call gets it)
            subchannel.end(is_ok=False)
            self._finish(error)
        else:
            self.attempt.add_done_callback(partial(self._first_ended, subchannel))

    def _first_ended(self, subchannel: Subchannel, attempt: grpc.aio.Call) -> None:
        is_ok = code_of(attempt) is grpc.StatusCode.OK
        subchannel.end(is_ok=is_ok)
        if self.is_done:
            return
        if is_ok:
            self._retries.succeeded()
            self._finish(None)
        elif attempt.cancelled() and details_of(attempt) == _CANCELLED:  # with the task that waits for it
            self.cancel()
        else:
            # A task that is cancelled before its first step would keep the call, and with it its connection.
            self._task = asyncio.Task(self._drive(subchannel), loop=self._loop, eager_start=True)

    async def _drive(self, first: Subchannel | None) -> None:
        """Make attempts to the end; on `first` one has been made."""
        error: BaseException | None = None
        run = partial(self._run, first)
        try:
            if self._calls.interceptors:
                await intercepted(self._calls.interceptors, self._call, self.deadline, run)
            else:
                await run()
        except asyncio.CancelledError:
            error = rpc_error(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except KeyboardInterrupt:
            self.cancel()
            raise
        except BaseException as caught:  # noqa: BLE001 (as above)
            error = caught
        self._finish(error)

    async def _run(self, first: Subchannel | None) -> None:
        try:
            error: BaseException | None = await self._attempts(first)
        except Exception as caught:  # noqa: BLE001 (as above)
            error = caught
        if self._streams:  # its caller does not wait for interceptors
            self._finish(error)
            error = self.error
        if error is not None:
            raise error

    async def _attempts(self, first: Subchannel | None) -> grpc.aio.AioRpcError | None:
        """Make one attempt after the other; return the error of the last one."""
        if first is None and self._calls.is_closing:
            raise self._calls.closed()
        tried: list[Subchannel] = []
        while True:
            if first is not None and not tried:
                subchannel, error = first, await self._end_of_attempt()
            else:
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
        if self._loop.time() >= self.deadline:
            # C-core would send it, and whether the answer or the deadline wins is chance.
            return rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        is_ok = False
        subchannel.begin()
        try:
            self._start(subchannel)
            self.moved()
            error = await self._end_of_attempt()
            is_ok = error is None
        finally:
            subchannel.end(is_ok=is_ok)
        return error

    def _start(self, subchannel: Subchannel) -> None:
        requests = self._request if isinstance(self._request, Requests) else None
        self.attempt = self._bind(subchannel)(
            self._request if requests is None else None,
            timeout=self.deadline - self._loop.time(),
            metadata=self._metadata(),
            **self._options,
        )
        if requests is not None:
            requests.send_to(self.attempt)

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
                return await self._calls.subchannel(tried, wait_for_ready=self._wait_for_ready)
        except TimeoutError:
            if not scope.expired():
                raise
            text = f"{self._calls.target} was not ready within {self._call.deadline:g} s"
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None

    def _wait_after(self, error: grpc.aio.AioRpcError, tried: list[Subchannel]) -> float | None:
        """Return the seconds until the next attempt; None if there is none."""
        if reached_no_server(error, tried[-1]) and self._may_go_elsewhere(tried):
            self._calls.balancer.numbers.transparent_retries += 1
            return 0
        wait = self._retries.wait_after(error)
        if wait is None or self._loop.time() + wait >= self.deadline:
            return None
        self._calls.balancer.numbers.retries += 1
        return wait

    def _can_be_made_again(self) -> bool:
        if self.is_committed:
            return False
        return not isinstance(self._request, Requests) or self._request.take_back()

    def _may_go_elsewhere(self, tried: list[Subchannel]) -> bool:
        if self._wait_for_ready:
            return True
        return len(tried) <= _MOST_UNSENT and self._calls.balancer.state() is not _FAILURE

    async def wait(self) -> Any:
        """Return the one response; who is cancelled meanwhile cancels the call.

        Raises:
            grpc.aio.AioRpcError: the call's error.

        """
        try:
            if self._task is None and self.attempt is not None:
                await self._only_response()
            await self.end()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self.raise_error()
        return self.response

    async def _only_response(self) -> None:
        """Wait for the first attempt, which is the only one as long as it does not fail."""
        try:
            self.response = await self.attempt
        except grpc.aio.AioRpcError:
            pass
        except asyncio.CancelledError:
            if is_cancelled():
                raise
        except Exception as error:  # noqa: BLE001 (as above)
            self.abort(error)

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
        self.abort(rpc_error(grpc.StatusCode.CANCELLED, _CANCELLED))
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
