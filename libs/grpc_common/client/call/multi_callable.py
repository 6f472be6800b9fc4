"""What a stub calls: each method of a service, with its deadline and what may be repeated."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import grpc

from grpc_common.client.balancer.subchannel import Subchannel
from grpc_common.client.call.call import ClientCall, Start
from grpc_common.client.call.calls import Calls
from grpc_common.client.call.handles import HANDLES
from grpc_common.client.call.requests import Requests
from grpc_common.client.call.retry import Retries
from grpc_common.client.call.whole_stream import WholeStream
from grpc_common.client.service_config import RetryPolicy
from grpc_common.core.calls import Call, CallType, Metadata, Method, ParentCall, parent_call

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})

_STREAMS_RESPONSES = (CallType.SERVER_STREAM, CallType.BIDI_STREAM)


class MultiCallable:
    """Calls one method of a service.

    Args:
        calls: what the calls of the channel share.
        method: which method.
        deadline: seconds for a call that is made without a timeout.
        retry: how its calls may be repeated; None if they may not.
        serialization: what grpc's own factories of multi-callables take beside the path.

    """

    def __init__(
        self,
        calls: Calls,
        method: Method,
        deadline: float,
        retry: RetryPolicy | None,
        serialization: dict[str, Any],
    ) -> None:
        self._calls = calls
        self._method = method
        self._deadline = deadline
        self._retry = retry
        self._no_retries = Retries(None, calls.throttle)
        self._wrap = HANDLES[method.type]
        self._streams = method.type in _STREAMS_RESPONSES
        self._serialization = serialization
        self._bound: WeakKeyDictionary[Subchannel, Start] = WeakKeyDictionary()

    def _bind(self, subchannel: Subchannel) -> Start:
        """Return grpc's own multi-callable on the channel of one endpoint."""
        bound = self._bound.get(subchannel)
        if bound is None:
            factory = getattr(subchannel.channel, self._method.type.shape)
            bound = self._bound[subchannel] = factory(self._method.path, **self._serialization)
        return bound

    def _bind_blocking(self, subchannel: Subchannel) -> Start:
        """Return what reads a stream in a thread."""
        start = subchannel.blocking.unary_stream(self._method.path, **self._serialization)
        return lambda request, **options: WholeStream(start(request, **options))

    def _begun(  # noqa: PLR0917 (in the order of grpc.aio's own)
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,  # noqa: FBT001 (grpc's)
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._begin(
            self._wrap,
            self._bind,
            request,
            timeout,
            metadata,
            wait_for_ready,
            _options(credentials, compression),
        )

    def _begin(  # noqa: PLR0917 (keywords cost time)
        self,
        wrap: Callable[[ClientCall], Any],
        bind: Callable[[Subchannel], Start],
        request: Any,
        timeout: float | None,
        metadata: Any,
        wait_for_ready: bool | None = None,  # noqa: FBT001 (as above)
        options: Mapping[str, Any] = _NO_OPTIONS,
    ) -> Any:
        parent = parent_call()
        if parent is not None and parent.has_answered:
            parent = None
        if parent is not None:
            metadata = _with_passed_on(metadata, parent)
        if timeout is None:
            timeout = _deadline(self._deadline, parent)
        call = ClientCall(
            self._calls,
            Call(self._method, list(metadata or ()), self._calls.target, timeout),
            bind,
            request,
            Retries(self._retry, self._calls.throttle) if self._retry else self._no_retries,
            streams=self._streams and wrap is self._wrap,
            wait_for_ready=bool(wait_for_ready),
            options=options,
        )
        wrapped = wrap(call)
        call.begin()
        if parent is not None:
            call.on_end(parent.cancel_with_it(call.cancel))
        return wrapped


class UnaryMultiCallable(MultiCallable):
    """Calls a method with one request."""

    def __call__(self, request: Any, **options: Any) -> Any:
        """Start a call, with the keyword arguments of grpc.aio's multi-callables."""
        return self._begun(request, **options)

    async def read_all(
        self,
        request: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 (gRPC's)
        metadata: Any = None,
    ) -> tuple[list[Any], grpc.aio.Metadata]:
        """Return all responses of a stream and its trailing metadata; see read_all.py."""
        call = self._begin(HANDLES[CallType.UNARY], self._bind_blocking, request, timeout, metadata)
        whole: tuple[list[Any], grpc.aio.Metadata] = await call
        return whole


class StreamMultiCallable(MultiCallable):
    """Calls a method with a stream of requests."""

    def __call__(
        self,
        request_iterator: Iterable[Any] | AsyncIterable[Any] | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """Start a call, with the arguments of grpc.aio's multi-callables."""
        requests = None if request_iterator is None else Requests(request_iterator)
        return self._begun(requests, *arguments, **options)


def _options(
    credentials: grpc.CallCredentials | None, compression: grpc.Compression | None
) -> Mapping[str, Any]:
    if credentials is None and compression is None:
        return _NO_OPTIONS
    return {"credentials": credentials, "compression": compression}


def _deadline(default: float, parent: ParentCall | None) -> float:
    left = None if parent is None else parent.time_remaining()
    return default if left is None else min(default, max(left, 0))


def _with_passed_on(metadata: Any, parent: ParentCall) -> Metadata:
    own = list(metadata or ())
    names = {name for name, _value in own}
    return [*own, *(pair for pair in parent.passed_on if pair[0] not in names)]
