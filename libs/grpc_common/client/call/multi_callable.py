"""What a stub calls: deadline, observers, and the choice of the channel for each single call.

It works around grpc's own multi-callables and not as a `grpc.aio.ClientInterceptor`: that would be
four classes, and a task for every call (20 to 28 µs, where this takes 7 to 10).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import cached_property, partial
from typing import Any, cast

import grpc
import structlog

from grpc_common.client.generation import Generation, Generations
from grpc_common.client.waiting import deferring_channel
from grpc_common.client.call.whole_stream import WholeStream
from grpc_common.core.background import is_cancelled
from grpc_common.core.calls import Call, CallType, Interceptor, Metadata, Method, ParentCall, parent_call
from grpc_common.core.errors import StatusError, status_of

log = structlog.get_logger()

_LEAVING = 1.0
"""Seconds that interceptors have after the deadline of their call, to see its end."""

_STREAMS_RESPONSES = (CallType.SERVER_STREAM, CallType.BIDI_STREAM)


class MultiCallable:
    """Calls one method of a service.

    Args:
        channel: what the calls are made on.
        method: which method.
        deadline: seconds for a call that is made without a timeout.
        serialization: what grpc's own factories of multi-callables take beside the path.

    """

    def __init__(
        self, channel: Generations, method: Method, deadline: float, serialization: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._method = method
        self._deadline = deadline
        self._serialization = serialization
        self._generation: Generation | None = None
        self._bound: Callable[..., grpc.aio.Call]
        self._streams: set[asyncio.Task[None]] = set()

    def _bind(self, channel: grpc.aio.Channel) -> Callable[..., grpc.aio.Call]:
        """Return grpc's own multi-callable on `channel`."""
        factory = getattr(channel, self._method.type.shape)
        bound: Callable[..., grpc.aio.Call] = factory(self._method.path, **self._serialization)
        return bound

    def _call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> grpc.aio.Call:
        parent = parent_call()
        if parent is None or parent.has_answered:
            return self._observed(request, self._deadline if timeout is None else timeout, metadata, options)
        metadata = _with_passed_on(metadata, parent)
        if timeout is None:
            left = parent.time_remaining()
            timeout = self._deadline if left is None else min(self._deadline, max(left, 0))
        started = self._observed(request, timeout, metadata, options)
        forget = parent.cancel_with_it(started.cancel)
        started.add_done_callback(lambda _done: forget())
        return started

    def _observed(
        self, request: Any, timeout: float, metadata: Any, options: dict[str, Any]
    ) -> grpc.aio.Call:
        if not self._channel.observers:
            return self._start(request, timeout=timeout, metadata=metadata, **options)
        call = Call(self._method, list(metadata or ()), self._channel.target, timeout)
        self._channel.observers.started(call)
        try:
            started = self._start(request, timeout=timeout, metadata=call.metadata, **options)
        except BaseException:
            self._ended(call, grpc.StatusCode.INTERNAL)
            raise
        started.add_done_callback(lambda done: self._ended(call, _code(done)))
        return started

    def _ended(self, call: Call, code: grpc.StatusCode) -> None:
        call.code = code
        self._channel.observers.ended(call)

    def _start(self, request: Any, **options: Any) -> grpc.aio.Call:
        generation = self._channel.current
        waits = options.get("wait_for_ready") and not self._channel.is_ready()
        if generation is None or waits or self._channel.interceptors:
            return self._deferred(request, **options)
        return self._start_on(generation, request, **options)

    def _start_on(self, generation: Generation, request: Any, **options: Any) -> grpc.aio.Call:
        if options.pop("in_thread", False):
            return self._start_in_thread(generation, request, options)
        if self._generation is not generation:
            self._generation, self._bound = generation, self._bind(generation.channel)
        call = self._bound(request, **options)
        generation.count(call)
        return call

    def _start_in_thread(
        self, generation: Generation, request: Any, options: dict[str, Any]
    ) -> grpc.aio.Call:
        blocking = generation.blocking
        if blocking is None:
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, f"{self._channel.target} has no endpoint")
        start = blocking.unary_stream(self._method.path, **self._serialization)
        call = cast("grpc.aio.Call", WholeStream(start(request, **options)))
        generation.count(call)
        return call

    @cached_property
    def _deferred(self) -> Callable[..., grpc.aio.Call]:
        """The multi-callable for calls that must wait: for interceptors, an endpoint, or until one is READY.

        They start on the channel that is current then. On a channel of grpc's they would wait for
        its endpoints, even when those have long been replaced.
        """
        return self._bind(deferring_channel(self._method.type, self._start_when_usable))

    async def _start_when_usable(self, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        call = Call(self._method, list(details.metadata or ()), self._channel.target, details.timeout)
        with self._as_rpc_error():
            if not self._channel.interceptors:
                return await self._start_in(AsyncExitStack(), call, details, request)
            starting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            following = self._follow(call, details, request, starting)
            if self._method.type is not CallType.UNARY:  # which nobody may wait for, or only after writing
                return await self._start_apart(following, starting)
            await following
            return starting.result()

    async def _start_apart(self, following: Coroutine[Any, Any, None], starting: asyncio.Future[Any]) -> Any:
        task = asyncio.create_task(following)
        self._streams.add(task)
        task.add_done_callback(partial(self._left, starting))
        try:
            started = await starting
        except asyncio.CancelledError:
            task.cancel()
            raise
        return started if self._method.type in _STREAMS_RESPONSES else _Awaited(started, task)

    def _left(self, starting: asyncio.Future[Any], task: asyncio.Task[None]) -> None:
        self._streams.discard(task)
        error = None if task.cancelled() else task.exception()
        if not starting.done():
            if error is None:
                starting.cancel()
            else:
                starting.set_exception(error)
        elif error is not None and self._method.type in _STREAMS_RESPONSES and not _is_logged(error):
            # It is too late for another status.
            log.error("interceptor failed after its call", method=self._method.path, exc_info=error)

    async def _follow(
        self, call: Call, details: grpc.aio.ClientCallDetails, request: Any, starting: asyncio.Future[Any]
    ) -> None:
        """Start a call in interceptors that stay entered until it ends; raise what they make of its end."""
        assert details.timeout is not None
        own: grpc.aio.AioRpcError | None = None
        leaving = asyncio.timeout(max(details.timeout, 0) + _LEAVING)
        try:
            with self._as_rpc_error():
                async with self._ending(leaving), AsyncExitStack() as stack:
                    started = await self._start_in(stack, call, details, request)
                    if not starting.done():
                        starting.set_result(started)
                    own = await _end_of(started)
                    if own is not None:
                        raise own
                if not starting.done():
                    text = f"an interceptor of {self._method.path} has suppressed an exception"
                    raise StatusError(grpc.StatusCode.INTERNAL, text)
        except grpc.aio.AioRpcError as error:
            if error is not own:  # which the call itself has
                raise

    @asynccontextmanager
    async def _ending(self, scope: asyncio.Timeout) -> AsyncIterator[None]:
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            text = f"an interceptor of {self._method.path} did not end with its call"
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None

    @contextmanager
    def _as_rpc_error(self) -> Iterator[None]:
        """Make a status of what an interceptor raises, SystemExit too: in a task it would end the loop."""
        try:
            yield
        except (grpc.aio.AioRpcError, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            raise _rpc_error_of(status_of(error, self._method.path)) from error

    async def _enter(self, stack: AsyncExitStack, interceptor: Interceptor, call: Call) -> None:
        try:
            await stack.enter_async_context(interceptor(call))
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            # It is that of a task which the interceptor has awaited: this call is not cancelled.
            raise _rpc_error_of(status_of(error, self._method.path)) from error

    async def _start_in(
        self, stack: AsyncExitStack, call: Call, details: grpc.aio.ClientCallDetails, request: Any
    ) -> grpc.aio.Call:
        """Enter the interceptors, wait for an endpoint and start the call, within its timeout."""
        assert details.timeout is not None
        end = asyncio.get_running_loop().time() + details.timeout
        scope = asyncio.timeout_at(end)
        awaited = self._channel.target
        try:
            async with scope:
                for interceptor in self._channel.interceptors:
                    awaited = f"the interceptor {_name(interceptor)}"
                    await self._enter(stack, interceptor, call)
                awaited = self._channel.target
                generation = await self._channel.usable(wait_for_ready=bool(details.wait_for_ready))
        except TimeoutError:
            if not scope.expired():
                raise
            text = f"{awaited} was not ready within {details.timeout:g} s"
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
        return self._start_on(
            generation,
            request,
            timeout=end - asyncio.get_running_loop().time(),
            metadata=call.metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class UnaryMultiCallable(MultiCallable):
    """Calls a method with one request."""

    def __call__(self, request: Any, **options: Any) -> grpc.aio.Call:
        """Start a call, with the keyword arguments of grpc.aio's multi-callables."""
        return self._call(request, **options)

    async def read_all(
        self,
        request: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 (gRPC's)
        metadata: Any = None,
    ) -> tuple[list[Any], grpc.aio.Metadata]:
        """Return all responses of a stream and its trailing metadata; see read_all.py."""
        channel = self._channel
        if channel.interceptors or channel.current is None or channel.current.blocking is None:
            call: Any = self._call(request, timeout, metadata)
            return [message async for message in call], await call.trailing_metadata()
        whole: Any = self._call(request, timeout, metadata, in_thread=True)
        return await cast("WholeStream", whole).read()


class StreamMultiCallable(MultiCallable):
    """Calls a method with a stream of requests."""

    def __call__(self, request_iterator: Any = None, *args: Any, **options: Any) -> grpc.aio.Call:
        """Start a call, with the arguments of grpc.aio's multi-callables."""
        return self._call(request_iterator, *args, **options)


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """Return the error of a call that never left this process."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def _rpc_error_of(error: StatusError) -> grpc.aio.AioRpcError:
    status = error.to_status()
    trailers = grpc.aio.Metadata(*status.trailing_metadata)
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, status.details)


async def _end_of(call: Any) -> grpc.aio.AioRpcError | None:
    """Wait for the end of a call, and return its error."""
    if not hasattr(call, "__await__"):
        return None if await call.code() is grpc.StatusCode.OK else await _error_of(call)
    try:
        await call  # its code never comes if gRPC can't send its metadata
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def _error_of(ended: grpc.aio.Call) -> grpc.aio.AioRpcError:
    headers, trailers = await ended.initial_metadata(), await ended.trailing_metadata()
    return grpc.aio.AioRpcError(await ended.code(), headers, trailers, await ended.details())


def _name(interceptor: Interceptor) -> str:
    """Return the name of a function, or of an object's class."""
    name: str = getattr(interceptor, "__name__", type(interceptor).__name__)
    return name


class _Awaited:
    """A call that streams requests, whose response is there once its interceptors have ended.

    The caller gets it before, to write to it.
    """

    def __init__(self, call: Any, interceptors: asyncio.Task[None]) -> None:
        self._call = call
        self._interceptors = interceptors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield from asyncio.shield(self._interceptors).__await__()
        except asyncio.CancelledError:
            self._call.cancel()
            raise
        return (yield from self._call.__await__())


def _is_logged(error: BaseException) -> bool:
    """Return whether status_of has made `error` of a bug."""
    return error.__cause__ is not None and not isinstance(error.__cause__, StatusError)


def _with_passed_on(metadata: Any, parent: ParentCall) -> Metadata:
    own = list(metadata or ())
    names = {name for name, _value in own}
    return [*own, *(pair for pair in parent.passed_on if pair[0] not in names)]


def _code(done: grpc.aio.Call) -> grpc.StatusCode:
    """Return the code of a call that has ended, for which its coroutine does not have to wait."""
    try:
        done.code().send(None)
    except StopIteration as stop:
        code: grpc.StatusCode = stop.value
        return code
    raise AssertionError(f"{done} has not ended")
