"""What a stub calls: deadline, observers, and the choice of the channel for each single call.

It works around grpc's own multi-callables and not as a `grpc.aio.ClientInterceptor`: that would be
four classes, and a task for every call (20 to 28 µs, where this takes 7 to 10).
"""

import asyncio
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import grpc

from grpc_common.client.generation import Generation, Generations
from grpc_common.client.waiting import deferring_channel
from grpc_common.core.calls import Call, Method


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

    def _bind(self, channel: grpc.aio.Channel) -> Callable[..., grpc.aio.Call]:
        """Return grpc's own multi-callable on `channel`."""
        factory = getattr(channel, self._method.type.shape)
        bound: Callable[..., grpc.aio.Call] = factory(self._method.path, **self._serialization)
        return bound

    def _call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> grpc.aio.Call:
        timeout = self._deadline if timeout is None else timeout
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
        if generation is None or (options.get("wait_for_ready") and not self._channel.is_ready()):
            return self._deferred(request, **options)
        return self._start_on(generation, request, **options)

    def _start_on(self, generation: Generation, request: Any, **options: Any) -> grpc.aio.Call:
        if self._generation is not generation:
            self._generation, self._bound = generation, self._bind(generation.channel)
        call = self._bound(request, **options)
        generation.count(call)
        return call

    @cached_property
    def _deferred(self) -> Callable[..., grpc.aio.Call]:
        """The multi-callable for calls that must wait, for the first endpoint or until one is READY.

        They start on the channel that is current then. On a channel of grpc's they would wait for
        its endpoints, even when those have long been replaced.
        """
        return self._bind(deferring_channel(self._method.type, self._start_when_usable))

    async def _start_when_usable(self, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        assert details.timeout is not None
        end = time.monotonic() + details.timeout
        try:
            async with asyncio.timeout(details.timeout):
                generation = await self._channel.usable(wait_for_ready=bool(details.wait_for_ready))
        except TimeoutError:
            text = f"{self._channel.target} was not ready within {details.timeout:g} s"
            raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
        return self._start_on(
            generation,
            request,
            timeout=end - time.monotonic(),
            metadata=details.metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class UnaryMultiCallable(MultiCallable):
    """Calls a method with one request."""

    def __call__(self, request: Any, **options: Any) -> grpc.aio.Call:
        """Start a call, with the keyword arguments of grpc.aio's multi-callables."""
        return self._call(request, **options)


class StreamMultiCallable(MultiCallable):
    """Calls a method with a stream of requests."""

    def __call__(self, request_iterator: Any = None, *args: Any, **options: Any) -> grpc.aio.Call:
        """Start a call, with the arguments of grpc.aio's multi-callables."""
        return self._call(request_iterator, *args, **options)


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """Return the error of a call that never left this process."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def _code(done: grpc.aio.Call) -> grpc.StatusCode:
    """Return the code of a call that has ended, for which its coroutine does not have to wait."""
    try:
        done.code().send(None)
    except StopIteration as stop:
        code: grpc.StatusCode = stop.value
        return code
    raise AssertionError(f"{done} has not ended")
