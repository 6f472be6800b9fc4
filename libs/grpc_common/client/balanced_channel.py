"""The channel that generated stubs get: connected to each endpoint, it chooses one for each call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from grpc_common.client.call.calls import Calls
from grpc_common.client.call.multi_callable import StreamMultiCallable, UnaryMultiCallable
from grpc_common.client.service_config import ServiceConfig
from grpc_common.core.calls import CallType, Method
from grpc_common.observe.metrics import CallMetrics

_READY = grpc.ChannelConnectivity.READY
_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN


class BalancedChannel(grpc.aio.Channel):
    """A channel over the subchannels of a balancer.

    Args:
        calls: what its calls share.
        service: which methods may be repeated, and how.
        deadlines: seconds for a call that is made without a timeout, by its type.
        method_deadlines: the same for single methods, by `package.Service/Method`.
        metrics: count the messages.

    """

    def __init__(
        self,
        calls: Calls,
        service: ServiceConfig,
        *,
        deadlines: Mapping[CallType, float],
        method_deadlines: Mapping[str, float],
        metrics: Sequence[CallMetrics],
    ) -> None:
        self._calls = calls
        self.balancer = calls.balancer
        """Has the connections; for those who tell how they are."""
        self._service = service
        self._deadlines = deadlines
        self._method_deadlines = method_deadlines
        self._metrics = metrics

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close every connection; calls that have not ended after `grace` seconds are cancelled."""
        await self._calls.close(grace)
        await self.balancer.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: ARG002, FBT001, FBT002 (grpc's signature)
        """Return the state of all endpoints together; without one it is TRANSIENT_FAILURE."""
        return self.balancer.state()

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the state is another one."""
        while self.balancer.state() is last_observed_state:
            await self.balancer.wait_for_change()

    async def channel_ready(self) -> None:
        """Wait until calls can be made, for as long as it takes."""
        while (state := self.balancer.state()) is not _READY:
            if state is _SHUTDOWN:
                raise asyncio.CancelledError
            await self.balancer.wait_for_change()

    @property
    def target(self) -> str:
        """The channel's name in errors and for observers."""
        return self._calls.target

    async def why_not_ready(self) -> str:
        """Return the reason why calls would fail now."""
        failing = self.balancer.failing()
        if failing is None:
            known = "no" if self.balancer.state() is _FAILURE else "not yet known which"
            return "no connection came in time" if self.balancer.subchannels else f"{known} endpoint is ready"
        # C-core tells its reason to calls only; which method it is doesn't matter.
        check: Callable[..., Any] = failing.channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            await check(b"", timeout=1)
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        return "it was a moment too late"

    def unary_unary(self, method: str, *serialization: Any, **options: Any) -> Any:
        """Return what calls `method`, with one request and one response."""
        return self._multi_callable(UnaryMultiCallable, method, CallType.UNARY, *serialization, **options)

    def unary_stream(self, method: str, *serialization: Any, **options: Any) -> Any:
        """Return what calls `method`, with one request and many responses."""
        return self._multi_callable(
            UnaryMultiCallable, method, CallType.SERVER_STREAM, *serialization, **options
        )

    def stream_unary(self, method: str, *serialization: Any, **options: Any) -> Any:
        """Return what calls `method`, with many requests and one response."""
        return self._multi_callable(
            StreamMultiCallable, method, CallType.CLIENT_STREAM, *serialization, **options
        )

    def stream_stream(self, method: str, *serialization: Any, **options: Any) -> Any:
        """Return what calls `method`, with many requests and many responses."""
        return self._multi_callable(
            StreamMultiCallable, method, CallType.BIDI_STREAM, *serialization, **options
        )

    def _multi_callable(
        self,
        kind: type[UnaryMultiCallable | StreamMultiCallable],
        path: str,
        call_type: CallType,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        **options: Any,
    ) -> Any:
        method = Method.from_path(path, call_type)
        for metrics in self._metrics:
            request_serializer = metrics.counted(request_serializer, method, "sent")
            response_deserializer = metrics.counted(response_deserializer, method, "received")
        name = path.removeprefix("/")
        serialization = {
            "request_serializer": request_serializer,
            "response_deserializer": response_deserializer,
        }
        return kind(
            self._calls,
            method,
            self._method_deadlines.get(name, self._deadlines[call_type]),
            self._service.retry if name in self._service.retryable_methods else None,
            serialization | options,
        )
