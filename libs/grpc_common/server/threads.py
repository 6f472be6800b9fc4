"""Runs servicers' plain functions in threads, with the synchronous context that they expect."""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent import futures
from contextlib import suppress
from typing import Any, NoReturn

import grpc
import structlog

from grpc_common.server.context import Context
from grpc_common.server.metadata import Metadata

log = structlog.get_logger()

_LIMIT = 32
"""Threads at most, as asyncio's own pool has; a call that gets none waits for one until its deadline."""


class Threads:
    """A bounded pool of threads, which start when there is work for them.

    They are daemons: a `concurrent.futures.Executor` would keep the process from its end for as long
    as a function hangs.

    Args:
        limit: how many there are at most.
        name: what they are called, with a number behind it.

    """

    def __init__(self, limit: int = _LIMIT, name: str = "servicer") -> None:
        self._limit = limit
        self._name = name
        self._count = 0
        self._idle = threading.Semaphore(0)
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue()

    async def run[Result](self, function: Callable[[], Result]) -> Result:
        """Return what `function` returns in a thread, where it has the context variables of this task.

        If the task is cancelled, a function that has begun goes on.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[Result | None, BaseException | None]] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            if ended.cancelled():
                return
            outcome: tuple[Result | None, BaseException | None]
            try:
                outcome = context.run(function), None
            except BaseException as error:  # noqa: BLE001 (it is raised in the task)
                outcome = None, error
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_set, ended, outcome)

        self._queue.put(work)
        self._have_a_thread()
        try:
            result, error = await ended
        except asyncio.CancelledError:
            self._forget(work)
            raise
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # it is one without an error

    def _forget(self, work: Callable[[], None]) -> None:
        """Drop what no thread has begun: it holds a request, and all threads may hang for ever."""
        with self._queue.mutex, suppress(ValueError):
            self._queue.queue.remove(work)

    def _have_a_thread(self) -> None:
        if not self._idle.acquire(blocking=False) and self._count < self._limit:
            self._count += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._count}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._queue.get()()
            self._idle.release()


def _set(future: asyncio.Future[Any], outcome: Any) -> None:
    if not future.done():
        future.set_result(outcome)


class SyncContext(grpc.ServicerContext):
    """The context of a plain function in its thread; what it does is done in the event loop's."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._pending: futures.Future[Any] | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._is_closed = False

    def close(self) -> None:
        """Have what the function waits for fail, and what it waits for later: its call is over."""
        self._is_closed = True
        if self._pending is not None:
            self._pending.cancel()
        for callback in self._callbacks:
            try:
                callback()
            except BaseException:  # whatever it is, the call has its result
                log.exception("callback of a call failed", method=self._context.call.method.path)

    def iterate(self, requests: Any) -> Iterator[Any]:
        """Yield the requests of a client that streams them."""
        ended = object()
        while (request := self._wait(anext(requests, ended))) is not ended:
            yield request

    def write_all(self, responses: Iterable[Any]) -> None:
        """Send each response, and close what they come from."""
        try:
            for response in responses:
                self._wait(self._context.write(response))
        finally:
            if hasattr(responses, "close"):
                responses.close()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._is_closed:
            work.close()
            raise grpc.aio.AbortError("the call is over")
        self._pending = asyncio.run_coroutine_threadsafe(work, self._loop)
        return self._pending.result()

    def is_active(self) -> bool:
        """Return whether somebody waits for the response."""
        return not self._is_closed and not self._context.done()

    def cancel(self) -> bool:
        """End the call with CANCELLED once the function returns; return whether it was not over yet."""
        was_active = self.is_active()
        if was_active:
            self._context.aborted(grpc.StatusCode.CANCELLED, "the server has cancelled the call", ())
        return was_active

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback` once the call is over; return False if it is."""
        if self.is_active():
            self._callbacks.append(callback)
        return self.is_active()

    def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Metadata = ()) -> NoReturn:
        """End the call with a status, and the function by an exception."""
        self._context.aborted(code, details, trailing_metadata)
        raise grpc.aio.AbortError(details)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status, and the function by an exception."""
        self.abort(status.code, status.details, status.trailing_metadata or ())

    def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Send the headers, which otherwise go with the first response."""
        self._wait(self._context.send_initial_metadata(initial_metadata))

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Set what is sent with the status."""
        self._context.set_trailing_metadata(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """Return what is sent with the status."""
        return self._context.trailing_metadata()

    def set_code(self, code: Any) -> None:
        """Set the status code."""
        self._context.set_code(code)

    def code(self) -> Any:
        """Return the code that was set, or None."""
        return self._context.code()

    def set_details(self, details: str) -> None:
        """Set the text of the status."""
        self._context.set_details(details)

    def details(self) -> Any:
        """Return the text that was set."""
        return self._context.details()

    def invocation_metadata(self) -> Any:
        """Return what the caller has sent."""
        return self._context.invocation_metadata()

    def peer(self) -> str:
        """Return the caller's address."""
        return self._context.peer()

    def time_remaining(self) -> Any:
        """Return the seconds until the caller's deadline, or None."""
        return self._context.time_remaining()

    def auth_context(self) -> Mapping[str, Any]:
        """Return what TLS knows of the caller."""
        return self._context.auth_context()

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the names of the caller."""
        return self._context.peer_identities()

    def peer_identity_key(self) -> str | None:
        """Return of what kind these names are."""
        return self._context.peer_identity_key()

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress the responses; before the first one only."""
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        """Send the next response as it is."""
        self._context.disable_next_message_compression()
