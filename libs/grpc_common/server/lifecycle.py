"""The life of a server's calls: what happens around every handler, whichever engine drives it.

The order is fixed: observers see the call, the caller is checked, then whether there is room; its
deadline begins; its message is awaited; the interceptors run, the first one outermost, and in them the
handler; whatever becomes of that is a status.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc

from grpc_common.config.sections import ServerSection
from grpc_common.core.calls import CallObserver, CallType, Interceptor, Metadata
from grpc_common.core.errors import Mapped, StatusError, leaves, status_of
from grpc_common.observe.metrics import CallMetrics
from grpc_common.observe.observers import Observers
from grpc_common.server.admission import Admission
from grpc_common.server.authentication import Access
from grpc_common.server.background import Background
from grpc_common.server.call import ServerCall
from grpc_common.server.deadlines import Deadlines
from grpc_common.server.flush import LARGE, Flush
from grpc_common.server.handler import Handler, MethodHandler, RefusingHandler, shown_path
from grpc_common.server.messages import MessageMemory
from grpc_common.server.rpc import Rpc
from grpc_common.server.threads import Threads

_DEADLINE_SLACK = 0.1
"""Seconds. On the client's clock the deadline is over earlier than here, by the time the request took."""

MANY_HEADERS = 64
"""Headers of a call that is not kept waiting for its message, since they may be megabytes; few have ten."""

_HEADER = 32
"""Bytes that HTTP/2 counts for a header beside its name and value: RFC 9113, section 10.5.1."""

_WATCHES = 10_000
"""Open streams of health and reflection: one for each connection of a large fleet, some 90 MB."""

_CHECKS = 1000
"""The same for single requests, apart from the streams: whoever fills those must not stop probes."""


class Lifecycle:
    """Lives the calls of one server.

    Args:
        config: limits and deadlines.
        observers: are told of each call.
        metrics: counts messages, and what observers raise.
        access: finds out who calls, and whether they may; None lets everyone.
        interceptors: run around the handlers, but not around health and reflection.
        errors: exceptions of handlers that have a status.

    """

    def __init__(
        self,
        config: ServerSection,
        *,
        observers: Sequence[CallObserver] = (),
        metrics: CallMetrics | None = None,
        access: Access | None = None,
        interceptors: Sequence[Interceptor] = (),
        errors: Mapped | None = None,
    ) -> None:
        self.admission = Admission(config.max_concurrent_calls)
        self._watches = Admission(_WATCHES, "health watches and the like")
        self._checks = Admission(_CHECKS, "health checks")
        self._unary = Deadlines(config.default_deadline)
        self._streaming = Deadlines(config.default_stream_deadline)
        self._observers = Observers(observers, metrics.observer_failures if metrics else None)
        self._metrics = metrics
        self._access = access
        self._interceptors = tuple(interceptors)
        self._propagated = frozenset(config.propagated_metadata)
        self.background = Background()
        self._errors = errors
        self._max_send_size = config.max_send_msg_size
        self._max_metadata_size = config.max_metadata_size
        self._memory = MessageMemory(config.max_message_memory)
        self._flush = Flush()
        self._threads = Threads()
        self._built_in_calls: set[ServerCall] = set()
        self._calls: set[ServerCall] = set()

    def adopt(self, path: str, method: MethodHandler) -> Handler:
        """Return the handler of a method that the server has."""
        handler = Handler(path, method, self._threads, self._metrics, self._max_send_size)
        return self._bounded(handler)

    def refuse(self, path: str, error: Exception | None = None) -> Handler:
        """Return the handler of a method that does not exist, or whose look-up has raised `error`."""
        what = f"the server does not implement {shown_path(path)}"
        error = error or StatusError(grpc.StatusCode.UNIMPLEMENTED, what)
        return self._bounded(RefusingHandler(path, error, self._threads))

    def _bounded(self, handler: Handler) -> Handler:
        is_unary = handler.method.type is CallType.UNARY or handler.stays_open
        handler.deadlines = self._unary if is_unary else self._streaming
        built_in = self._watches if handler.streams_responses else self._checks
        handler.admission = built_in if handler.built_in else self.admission
        return handler

    async def live(self, handler: Handler, rpc: Rpc) -> bytes | None:
        """Live a call from its headers on, in its own task.

        Returns:
            The message to send with the status OK, unless the call is answered when this returns;
            None if all messages were sent.

        Raises:
            asyncio.CancelledError: the caller is gone.

        """
        call = ServerCall(handler.method, rpc, self._observers, self._memory, self.background)
        call.propagated = self._propagated
        call.unknown_path = handler.unknown_path
        admission = handler.admission
        admission.arrived()
        self._calls.add(call)
        rpc.when_left(lambda: self._left(call, admission))
        call.begin()
        message, failure = await self._respond(call, handler)
        if failure is None:
            call.finish(grpc.StatusCode.OK)
        else:
            await call.end(failure)
            call.leave()
        return message

    async def _respond(self, call: ServerCall, handler: Handler) -> tuple[bytes | None, StatusError | None]:
        deadlines = handler.deadlines
        try:
            if self._access is not None:
                await self._access.check(call)
            self._admit(call, handler.admission)
            if call.deadline is None or handler.built_in:
                call.time_limit = deadlines.seconds
                deadlines.add(call)
            if handler.built_in:
                self._built_in_calls.add(call)
            request = await handler.receive(call)
            if handler.stays_open:
                deadlines.remove(call)
            call.in_handler = True
            message = await self._run(call, handler, request)
            if call.is_cancelled:  # and the servicer has gone on, for nobody
                return b"", call.failure or _cancelled(call)
            call.hold(message)
            failure = call.failure or _status_of_servicer(call)
            if handler.streams_responses or len(message) > LARGE:
                deadlines.remove(call)  # the servicer was in time, even if the network is not
                await self._send_before_status(call, handler, b"" if failure else message)
                return None, failure
        except BaseException as error:  # noqa: BLE001 (every end of a handler is a status)
            return b"", _failure(call, error, self._errors)
        else:
            return message, failure
        finally:
            deadlines.remove(call)
            self._built_in_calls.discard(call)

    async def _send_before_status(self, call: ServerCall, handler: Handler, message: bytes) -> None:
        """Send what is left, and wait until the kernel has sent all messages of the call."""
        if call.is_over:
            return
        if message:
            await call.rpc.write(message)
        if not handler.built_in:
            await call.rpc.flush()
            await self._flush.sent(call.peer, _seconds_left(call, handler.deadlines))

    def _run(self, call: ServerCall, handler: Handler, request: Any) -> Coroutine[Any, Any, bytes]:
        if handler.streams_responses and not handler.built_in:
            return self._stream(call, handler, request)
        return self._intercepted(call, handler, request)

    async def _stream(self, call: ServerCall, handler: Handler, request: Any) -> bytes:
        with self._flush.stream(call.peer):
            return await self._intercepted(call, handler, request)

    def _intercepted(self, call: ServerCall, handler: Handler, request: Any) -> Coroutine[Any, Any, bytes]:
        if handler.built_in or not self._interceptors:
            return handler.respond(call, request)
        return self._in_interceptors(call, handler, request)

    async def _in_interceptors(self, call: ServerCall, handler: Handler, request: Any) -> bytes:
        failure: BaseException | None = None
        message = b""
        async with AsyncExitStack() as stack:
            for interceptor in self._interceptors:
                await stack.enter_async_context(interceptor(call))
            try:
                message = await handler.respond(call, request)
                failure = call.failure or _status_of_servicer(call)
            except BaseException as error:  # noqa: BLE001 (it is raised below)
                is_abort = isinstance(error, grpc.aio.AbortError)
                failure = (is_abort and call.failure) or error
            if failure is not None:  # a status in one form, however the servicer has said it
                raise failure
            return message
        raise failure or StatusError(
            grpc.StatusCode.INTERNAL, f"an interceptor of {call.method.path} has suppressed an exception"
        )

    def _admit(self, call: ServerCall, admission: Admission) -> None:
        # C-core takes up to 16 MiB of whoever has not acknowledged its SETTINGS.
        if _size(call.metadata) > self._max_metadata_size:
            call.metadata.clear()  # megabytes, while the status is under way
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "the metadata is larger than max_metadata_size"
            )
        admission.admit()
        call.admitted = True

    def _left(self, call: ServerCall, admission: Admission) -> None:
        self._calls.discard(call)
        if call.is_cancelled:
            call.cancel_others()
        admission.left(admitted=call.admitted)
        call.hold(b"")
        call.leave()

    def methods_in_flight(self) -> list[str]:
        """Return the paths of the methods, but the server's own, that have calls which have not left."""
        return sorted({call.method.path for call in self._calls - self._built_in_calls})

    def end_built_in_calls(self) -> None:
        """End health watches and the like with UNAVAILABLE, since their clients never would."""
        error = StatusError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        for call in list(self._built_in_calls):
            call.end_early(error)


def _size(metadata: Metadata) -> int:
    return sum(len(name) + len(value) + _HEADER for name, value in metadata)


def _failure(call: ServerCall, error: BaseException, errors: Mapped | None) -> StatusError:
    """Return the status of a call that an exception has ended.

    Raises:
        BaseException: nobody waits for a status.

    """
    if isinstance(error, KeyboardInterrupt) or not call.runs_here:  # a coroutine that is closed has no task
        raise error
    if call.failure is None and not (call.is_cancelled or call.rpc.is_gone):
        call.error = error
        return status_of(error, call.method.path, call.rpc.context.code(), errors)
    failure = call.failure or _cancelled(call)
    if not call.in_handler and call.failure is None:
        call.finish(failure.code)
        raise error
    if not all(isinstance(each, asyncio.CancelledError | grpc.aio.AbortError) for each in leaves(error)):
        status_of(error, call.method.path, mapped=errors)  # a bug on the way out is one, too, and logged
    return failure


def _cancelled(call: ServerCall) -> StatusError:
    if call.deadline is not None and call.rpc.context.time_remaining() < _DEADLINE_SLACK:
        return StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline of the call is over")
    return StatusError(grpc.StatusCode.CANCELLED, "the call was cancelled")


def _status_of_servicer(call: ServerCall) -> StatusError | None:
    """Return the status that the servicer has set without an exception, if it is not OK."""
    code: grpc.StatusCode | None = call.rpc.context.code()
    if code is None or code is grpc.StatusCode.OK:
        return None
    return StatusError(code, call.rpc.context.details() or "")


def _seconds_left(call: ServerCall, deadlines: Deadlines) -> float | None:
    """Return what the server's own deadline leaves; at the client's gRPC ends the call."""
    if call.deadline is not None or deadlines.seconds is None:
        return None
    return deadlines.seconds - call.elapsed
