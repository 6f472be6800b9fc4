"""What happens around every call of a server: admission, deadline, status, observers.

One interceptor does it all, so that the order is fixed: who calls is checked first, then
whether there is room; an exception becomes a status; observers see how the call ended.
"""

import asyncio
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health

from grpc_common.config.durations import format_duration
from grpc_common.config.sections import ServerSection
from grpc_common.core.calls import Call, CallObserver, CallType, Method
from grpc_common.core.errors import StatusError, status_of
from grpc_common.observe.metrics import UNKNOWN_METHOD, CallMetrics
from grpc_common.server import reflection
from grpc_common.server.admission import Admission
from grpc_common.server.authorization import Authorizer
from grpc_common.server.flush import Streams

type Context = grpc.aio.ServicerContext[Any, Any]
type _Handler = grpc.RpcMethodHandler[Any, Any]
type _Behavior = Callable[[Any, Context], Any]

BUILT_IN = frozenset({health.SERVICE_NAME, *reflection.SERVICE_NAMES})
"""Services of the server itself. They answer when it is full, and may stay open as long as it lives."""

_CANCELLATION_DELAY = 0.001
"""Seconds. A client that cancels while requests are awaited looks, until gRPC's next event, like one that
has sent all that it had; a wait of no time misses 3 in 100."""

_DEADLINE_SLACK = 0.1
"""Seconds. On the client's clock the deadline is over earlier than here, by the time the request took."""


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each method of a server once, when it is first called."""

    def __init__(
        self,
        config: ServerSection,
        *,
        observers: Sequence[CallObserver] = (),
        metrics: CallMetrics | None = None,
        authorizer: Authorizer | None = None,
    ) -> None:
        self.admission = Admission(config.max_concurrent_calls)
        self.config = config
        self.observers = observers
        self.authorizer = authorizer
        self.streams = Streams()
        self._metrics = metrics
        self._handlers: dict[str, _Handler] = {}
        self._built_in_calls: set[asyncio.Timeout] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Return the wrapped method; one that does not exist stays UNIMPLEMENTED."""
        path = handler_call_details.method
        if path in self._handlers:
            return self._handlers[path]
        handler = await continuation(handler_call_details)
        if handler is None:
            self._observe_unknown(handler_call_details)
            return None
        self._handlers[path] = self._wrapped(path, handler)
        return self._handlers[path]

    def end_built_in_calls(self) -> None:
        """End health watches and the like with UNAVAILABLE, since their clients never would."""
        for timeout in self._built_in_calls:
            timeout.reschedule(asyncio.get_running_loop().time())

    @contextmanager
    def endable(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """Let end_built_in_calls end the call that runs under `timeout`."""
        self._built_in_calls.add(timeout)
        try:
            yield
        finally:
            self._built_in_calls.discard(timeout)

    def _wrapped(self, path: str, handler: _Handler) -> _Handler:
        call_type = CallType.of(
            request_streaming=handler.request_streaming, response_streaming=handler.response_streaming
        )
        method = Method.from_path(path, call_type)
        guard = _Guard(self, method, getattr(handler, call_type.shape), *self._counting(method, handler))
        make: Callable[..., _Handler] = getattr(grpc, f"{call_type.shape}_rpc_method_handler")
        # The guard parses and serializes single messages itself, so that an error is the call's status.
        return make(
            guard.respond_with_stream if handler.response_streaming else guard.respond,
            guard.parse if handler.request_streaming else None,
            guard.serialize if handler.response_streaming else None,
        )

    def _counting(self, method: Method, handler: _Handler) -> tuple[Any, Any]:
        """Return the deserializer and the serializer of a method, which count if there are metrics."""
        if self._metrics is None:
            return handler.request_deserializer, handler.response_serializer
        return (
            self._metrics.counted(handler.request_deserializer, method, "received"),
            self._metrics.counted(handler.response_serializer, method, "sent"),
        )

    def _observe_unknown(self, details: grpc.HandlerCallDetails) -> None:
        call = Call(UNKNOWN_METHOD, metadata=list(details.invocation_metadata or ()))
        for observer in self.observers:
            observer.started(call)
        call.code = grpc.StatusCode.UNIMPLEMENTED
        for observer in self.observers:
            observer.ended(call)


class _Guard:
    """One method with everything around it."""

    def __init__(
        self,
        interceptor: ServerInterceptor,
        method: Method,
        behavior: _Behavior,
        deserializer: Callable[[bytes], Any] | None,
        serializer: Callable[[Any], bytes] | None,
    ) -> None:
        self._interceptor = interceptor
        self._deserializer = deserializer
        self._serializer = serializer
        self._method = method
        self._behavior = behavior
        self._built_in = method.service in BUILT_IN
        self._streams_requests = method.type in {CallType.CLIENT_STREAM, CallType.BIDI_STREAM}
        self._streams_responses = method.type in {CallType.SERVER_STREAM, CallType.BIDI_STREAM}
        config = interceptor.config
        self._default_deadline: float | None = (
            config.default_deadline if method.type is CallType.UNARY else config.default_stream_deadline
        )
        if self._built_in:
            self._default_deadline = None

    async def respond(self, request: Any, context: Context) -> Any:
        return await self._run(context, lambda: self._response(request, context))

    async def respond_with_stream(self, request: Any, context: Context) -> None:
        # A coroutine, not a generator: when the call is cancelled this code runs on at once.
        respond = self._responses if self._built_in else self._counted_responses
        await self._run(context, lambda: respond(request, context))

    def parse(self, message: bytes) -> Any:
        """Return the request that a client has sent.

        Raises:
            StatusError: it is none; INTERNAL, as gRPC has it for this.

        """
        try:
            return self._deserializer(message) if self._deserializer else message
        except Exception:  # noqa: BLE001 (each serialization has its own)
            raise StatusError(
                grpc.StatusCode.INTERNAL, f"the request of {self._method.path} can't be parsed"
            ) from None

    def serialize(self, response: Any) -> bytes:
        """Return what is sent to the client.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, since it is too large.

        """
        message: bytes = self._serializer(response) if self._serializer else response
        limit = self._interceptor.config.max_send_msg_size
        if len(message) > limit:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the response is larger than max_send_msg_size ({len(message)} vs. {limit} bytes)",
            )
        return message

    async def _response(self, request: Any, context: Context) -> bytes:
        response = self._behavior(self._request(request), context)
        if inspect.isawaitable(response):  # what a generated servicer leaves out is a plain function
            response = await response
        # With a code of its own a servicer may return None, which gRPC does not send.
        return self.serialize(response) if context.code() in {None, grpc.StatusCode.OK} else b""

    def _request(self, request: Any) -> Any:
        return request if self._streams_requests else self.parse(request)

    async def _counted_responses(self, request: Any, context: Context) -> None:
        with self._interceptor.streams.running(context.peer()):
            await self._responses(request, context)

    async def _responses(self, request: Any, context: Context) -> None:
        responses = self._behavior(self._request(request), context)
        if not isinstance(responses, AsyncIterable):
            await responses  # a coroutine that writes by itself
            return
        async with aclosing(aiter(responses)) as messages:  # type: ignore[type-var]  # a generator
            async for message in messages:
                await context.write(message)

    async def _run[Result](self, context: Context, respond: Callable[[], Awaitable[Result]]) -> Result:
        call = self._started(context)
        # The client's own deadline is kept by gRPC, which cancels this task.
        timeout = asyncio.timeout(self._default_deadline if call.deadline is None else None)
        try:
            async with timeout:
                with self._place(context, timeout):
                    result = await respond()
                    if self._streams_requests:
                        await asyncio.sleep(_CANCELLATION_DELAY)
                    if self._streams_responses and not self._built_in:
                        timeout.reschedule(None)  # the servicer was in time
                        await self._interceptor.streams.sent(call.peer)
        except asyncio.CancelledError:
            overdue = call.deadline is not None and context.time_remaining() < _DEADLINE_SLACK
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED if overdue else grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001 (every end of a call becomes a status)
            await self._abort(call, context, self._overdue() if timeout.expired() else error)
        else:
            code: grpc.StatusCode | None = context.code()  # None unless the servicer has set one
            call.code = grpc.StatusCode.OK if code is None else code
            return result
        finally:
            call.code = call.code or grpc.StatusCode.UNKNOWN
            for observer in self._interceptor.observers:
                observer.ended(call)

    def _started(self, context: Context) -> Call:
        call = Call(
            self._method,
            metadata=list(context.invocation_metadata() or ()),
            peer=context.peer(),
            deadline=context.time_remaining(),
        )
        for observer in self._interceptor.observers:
            observer.started(call)
        return call

    def _place(self, context: Context, timeout: asyncio.Timeout) -> AbstractContextManager[None]:
        interceptor = self._interceptor
        if self._built_in:
            return interceptor.endable(timeout)
        if interceptor.authorizer:
            interceptor.authorizer.check(self._method.path, context.auth_context())
        return interceptor.admission.admit(context)

    def _overdue(self) -> StatusError:
        if self._built_in:
            return StatusError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        limit = format_duration(self._default_deadline or 0)
        return StatusError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"the call took longer than {limit}, which holds for calls without a deadline of their own",
        )

    async def _abort(self, call: Call, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            call.code = context.code()
            raise error
        status_error = status_of(error, self._method.path, context)
        call.code = status_error.code
        status = status_error.to_status()
        trailers = (*context.trailing_metadata(), *(status.trailing_metadata or ()))
        await context.abort(status.code, status.details, trailers)
