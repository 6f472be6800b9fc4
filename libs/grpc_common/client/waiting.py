"""Interceptors that put off a call: grpc hands out its object at once, the call itself starts later."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from grpc_common.core.calls import CallType

type Start = Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]]
"""Waits as long as it must, and then starts the call that a request, or the iterator of requests, is for."""


class _Deferral:
    def __init__(self, start: Start) -> None:
        self._start = start


# grpc takes an interceptor as one of the first of these kinds only, so that one class for all won't do.
class _UnaryUnary(_Deferral, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        del continuation
        return await self._start(client_call_details, request)


class _UnaryStream(_Deferral, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        del continuation
        return await self._start(client_call_details, request)


class _StreamUnary(_Deferral, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        del continuation
        return await self._start(client_call_details, request_iterator)


class _StreamStream(_Deferral, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request_iterator: Any
    ) -> Any:
        del continuation
        return await self._start(client_call_details, request_iterator)


_KINDS: dict[CallType, Callable[[Start], grpc.aio.ClientInterceptor]] = {
    CallType.UNARY: _UnaryUnary,
    CallType.CLIENT_STREAM: _StreamUnary,
    CallType.SERVER_STREAM: _UnaryStream,
    CallType.BIDI_STREAM: _StreamStream,
}


def deferring_channel(call_type: CallType, start: Start) -> grpc.aio.Channel:
    """Return a channel for calls of one type that `start` starts, on whatever channel; it never connects."""
    return grpc.aio.insecure_channel("unused", interceptors=[_KINDS[call_type](start)])
