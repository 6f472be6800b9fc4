"""Runs the methods of servicers, in each of the forms that grpc.aio takes them."""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from types import CoroutineType
from typing import Any

import grpc
from grpc_health.v1 import health

from grpc_common.core.calls import CallType, Method
from grpc_common.core.errors import StatusError, printable
from grpc_common.observe.metrics import UNKNOWN_METHOD, CallMetrics
from grpc_common.server import reflection
from grpc_common.server.admission import Admission
from grpc_common.server.call import ServerCall
from grpc_common.server.codec import Codec
from grpc_common.server.context import Context
from grpc_common.server.deadlines import Deadlines
from grpc_common.server.threads import SyncContext, Threads

type MethodHandler = grpc.RpcMethodHandler[Any, Any]

BUILT_IN = frozenset({health.SERVICE_NAME, *reflection.SERVICE_NAMES})
"""Services of the server itself, which answer when it is full."""

_LONGEST_PATH = 200
"""Characters of an unknown method's path that are told to the caller and to the log."""


def type_of(handler: MethodHandler) -> CallType:
    """Return how a method streams."""
    return CallType.of(
        request_streaming=handler.request_streaming, response_streaming=handler.response_streaming
    )


class Handler:
    """A method of a servicer.

    Args:
        path: `/package.Service/Method`.
        handler: the method as it is registered with gRPC.
        threads: run plain functions.
        metrics: counts messages.
        max_send_size: bytes of the largest response.

    """

    unknown_path = ""

    admission: Admission
    """What its calls take a place of."""

    deadlines: Deadlines
    """What ends its calls if they have no deadline of their own."""

    def __init__(
        self,
        path: str,
        handler: MethodHandler,
        threads: Threads,
        metrics: CallMetrics | None = None,
        max_send_size: int = 0,
    ) -> None:
        call_type = type_of(handler)
        self.method = Method.from_path(path, call_type)
        self.built_in = self.method.service in BUILT_IN
        self.streams_responses = handler.response_streaming
        self.stays_open = self.built_in and call_type is CallType.SERVER_STREAM
        """Whether calls may last as long as the server, once their request is there: health watches."""
        self.streams_requests = handler.request_streaming
        self._behavior: Callable[[Any, Any], Any] = getattr(handler, call_type.shape)
        self._is_plain = not _is_async(self._behavior)
        self._threads = threads
        self._codec = Codec(self.method, handler, metrics, max_send_size)

    async def receive(self, call: ServerCall) -> Any:
        """Return the request, or the requests if the method streams them.

        Raises:
            StatusError: the request can't be parsed, or none has come.

        """
        if self.streams_requests:
            return _Requests(call, self._codec)
        message = await call.read()
        if message is None:
            raise StatusError(grpc.StatusCode.INTERNAL, f"the request of {self.method.path} has no message")
        return self._codec.parse(message)

    async def respond(self, call: ServerCall, request: Any) -> bytes:
        """Run the method, and return the message to send with the status; empty if it streams responses."""
        context = Context(call, self._codec)
        if self._is_plain:
            result = await self._run_in_thread(context, request)
        else:
            result = self._behavior(request, context)
        message = b""
        if self.streams_responses:
            await _write_all(context, result)
        else:
            is_awaitable = type(result) is CoroutineType or inspect.isawaitable(result)
            response = await result if is_awaitable else result
            # With a code of its own a servicer may return None, for which there is no message.
            code = context.code()
            has_message = code is None or code is grpc.StatusCode.OK
            message = self._codec.serialize(response) if has_message else b""
        return message

    async def _run_in_thread(self, context: Context, request: Any) -> Any:
        sync_context = SyncContext(context)

        def work() -> Any:
            requests = sync_context.iterate(request) if self.streams_requests else request
            result = self._behavior(requests, sync_context)
            if self.streams_responses and isinstance(result, Iterable):
                sync_context.write_all(result)
                return None
            return result

        try:
            return await self._threads.run(work)
        finally:
            sync_context.close()


class RefusingHandler(Handler):
    """Stands for a method that can't be served: ends each call with `error`, before its message comes."""

    def __init__(self, path: str, error: Exception, threads: Threads) -> None:
        self.unknown_path = shown_path(path)
        self._error = error
        super().__init__("/unknown/unknown", grpc.stream_unary_rpc_method_handler(self._refuse), threads)
        self.method = UNKNOWN_METHOD

    async def _refuse(self, _requests: Any, _context: Any) -> None:
        raise self._error


def shown_path(path: str) -> str:
    """Return a path that a caller has sent as it may be shown to the caller and in the log."""
    return printable(path[:_LONGEST_PATH])


class _Requests:
    """The messages that a client streams."""

    def __init__(self, call: ServerCall, codec: Codec) -> None:
        self._call = call
        self._codec = codec

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self._call.read()
        if message is None:
            raise StopAsyncIteration
        return self._codec.parse(message)


async def _write_all(context: Context, responses: Any) -> None:
    if inspect.isawaitable(responses):  # a coroutine writes by itself, or returns what is to be written
        responses = await responses
    if responses is None:
        return
    iterator = aiter(responses)
    try:
        async for response in iterator:
            await context.write(response)
    finally:
        if inspect.isasyncgen(iterator):
            await iterator.aclose()


def _is_async(behavior: Callable[..., Any]) -> bool:
    """Return whether a method is to be called in the event loop.

    What wraps a method, as a decorator does, counts as what it wraps; an object as its `__call__`.
    """
    function = inspect.unwrap(behavior)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    forms = (behavior, function, type(function).__call__)
    return any(inspect.iscoroutinefunction(form) or inspect.isasyncgenfunction(form) for form in forms)
