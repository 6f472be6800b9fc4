"""A channel that can be replaced under its users: new endpoints, new certificates, no failed call.

grpcio has no resolver of one's own and can't change a channel's credentials. So a `SwappingChannel`
owns a channel of grpc's, opens another one when something has changed, and closes the old one when
the last call on it has ended. The new one connects to all endpoints anew, while the old one serves:
C-core shares connections between channels of one target, and the endpoints are the target here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import structlog

from grpc_common.client.generation import Generation
from grpc_common.client.call.multi_callable import StreamMultiCallable, UnaryMultiCallable, rpc_error
from grpc_common.core.calls import CallObserver, CallType, Interceptor, Method
from grpc_common.observe.metrics import CallMetrics
from grpc_common.observe.observers import Observers

log = structlog.get_logger()

_READY = grpc.ChannelConnectivity.READY
_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN


class SwappingChannel(grpc.aio.Channel):
    """A channel for generated stubs whose connections can be replaced while calls are made.

    Without an endpoint a call fails UNAVAILABLE at once, and one that is made with
    `wait_for_ready` waits for an endpoint until its deadline.

    Args:
        target: the channel's name in errors and for observers.
        open_channel: opens a channel to the endpoints and with the credentials of this moment;
            returns None without an endpoint.
        open_blocking: opens one for threads, if streams may be read there.
        deadlines: seconds for a call that is made without a timeout, by its type.
        method_deadlines: the same for single methods, by `package.Service/Method`.
        observers: are told about each call.
        interceptors: run around each call.

    """

    def __init__(
        self,
        target: str,
        open_channel: Callable[[], grpc.aio.Channel | None],
        *,
        open_blocking: Callable[[], grpc.Channel | None] = lambda: None,
        deadlines: Mapping[CallType, float],
        method_deadlines: Mapping[str, float],
        observers: Sequence[CallObserver] = (),
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self.target = target
        self.observers = Observers(observers)
        self.interceptors: Sequence[Interceptor] = tuple(interceptors)
        self._metrics = [observer for observer in observers if isinstance(observer, CallMetrics)]
        self.current: Generation | None = None
        self._open = open_channel
        self._open_blocking = open_blocking
        self._deadlines = deadlines
        self._method_deadlines = method_deadlines
        # What the channel's state is while there is no generation.
        self._state = grpc.ChannelConnectivity.CONNECTING
        self._swapped = asyncio.Event()
        self._retired: set[Generation] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def follow(self, changed: asyncio.Event) -> None:
        """Open a new channel each time that `changed` is set, and clear it; never returns.

        The old channel serves on for as long as it is READY and the new one is not: a call that
        an old endpoint answers is better than one that a new endpoint does not.
        """
        while True:
            await changed.wait()
            changed.clear()
            try:
                await self._renew(changed)
            except Exception:
                log.exception("the channel can't be replaced, the old one stays in use", target=self.target)

    async def _renew(self, changed: asyncio.Event) -> None:
        channel = self._open()
        if channel is None:
            self._swap_to(None)
        else:
            await self._swap_when_ready(Generation(channel, self._open_blocking), changed)

    async def _swap_when_ready(self, new: Generation, changed: asyncio.Event) -> None:
        new.channel.get_state(try_to_connect=True)
        try:
            if self.current is not None:
                await first_of(new.channel.channel_ready(), _lost(self.current), changed.wait())
            if not changed.is_set() or new.channel.get_state() is _READY:
                self._swap_to(new)
        finally:
            if self.current is not new:
                await new.close()

    def _swap_to(self, new: Generation | None) -> None:
        old, self.current = self.current, new
        self._state = _FAILURE
        self._wake()
        if old is not None:
            self._retired.add(old)
            old.when_idle(lambda: self._dispose(old))

    def _wake(self) -> None:
        swapped, self._swapped = self._swapped, asyncio.Event()
        swapped.set()

    def _dispose(self, old: Generation) -> None:
        self._retired.discard(old)
        task = asyncio.ensure_future(old.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def usable(self, *, wait_for_ready: bool) -> Generation:
        """Return the generation to make a call on, as soon as there is one.

        Raises:
            grpc.aio.AioRpcError: UNAVAILABLE if there is no endpoint and the call does not
                wait, CANCELLED if the channel was closed.

        """
        while True:
            state = self.get_state(try_to_connect=True)
            if state is _SHUTDOWN:
                raise rpc_error(grpc.StatusCode.CANCELLED, f"the channel to {self.target} is closed")
            if self.current is not None and (state is _READY or not wait_for_ready):
                return self.current
            if state is _FAILURE and not wait_for_ready:
                raise rpc_error(grpc.StatusCode.UNAVAILABLE, f"{self.target} has no endpoint that is ready")
            await self.wait_for_state_change(state)

    async def why_not_ready(self) -> str:
        """Return the reason why calls would fail now."""
        if self.current is None:
            return f"{'no' if self._state is _FAILURE else 'not yet known which'} endpoint is ready"
        # C-core tells its reason to calls only; which method it is doesn't matter.
        check: Callable[..., Any] = self.current.channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            await check(b"", timeout=1)
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        return "it was a moment too late"

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
        """Close every channel; calls that have not ended after `grace` seconds are cancelled."""
        generations = [*self._retired, *([self.current] if self.current else [])]
        self.current, self._state = None, _SHUTDOWN
        self._wake()
        await asyncio.gather(*(generation.close(grace) for generation in generations))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 (grpc's signature)
        """Return the state of the current channel; without an endpoint TRANSIENT_FAILURE."""
        return self._state if self.current is None else self.current.channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the state is another one, be it through a swap."""
        while self.get_state() is last_observed_state:
            waits: list[Coroutine[Any, Any, object]] = [self._swapped.wait()]
            if self.current is not None:
                waits.append(self.current.wait_for_state_change(last_observed_state))
            await first_of(*waits)

    def is_ready(self) -> bool:
        """Return whether an endpoint would take a call now."""
        return self.get_state() is _READY

    async def channel_ready(self) -> None:
        """Wait until calls can be made, for as long as it takes."""
        await self.usable(wait_for_ready=True)

    def unary_unary(self, method: str, *serialization: Any, **options: Any) -> Any:
        """Return what calls `method`, with one request and one response."""
        return UnaryMultiCallable(*self._describe(method, CallType.UNARY, *serialization, **options))

    def unary_stream(self, method: str, *serialization: Any, **options: Any) -> Any:
        """Return what calls `method`, with one request and many responses."""
        return UnaryMultiCallable(*self._describe(method, CallType.SERVER_STREAM, *serialization, **options))

    def stream_unary(self, method: str, *serialization: Any, **options: Any) -> Any:
        """Return what calls `method`, with many requests and one response."""
        return StreamMultiCallable(*self._describe(method, CallType.CLIENT_STREAM, *serialization, **options))

    def stream_stream(self, method: str, *serialization: Any, **options: Any) -> Any:
        """Return what calls `method`, with many requests and many responses."""
        return StreamMultiCallable(*self._describe(method, CallType.BIDI_STREAM, *serialization, **options))

    def _describe(
        self,
        path: str,
        call_type: CallType,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        **options: Any,
    ) -> tuple[SwappingChannel, Method, float, dict[str, Any]]:
        method = Method.from_path(path, call_type)
        for metrics in self._metrics:
            request_serializer = metrics.counted(request_serializer, method, "sent")
            response_deserializer = metrics.counted(response_deserializer, method, "received")
        deadline = self._method_deadlines.get(path.removeprefix("/"), self._deadlines[call_type])
        serialization = {
            "request_serializer": request_serializer,
            "response_deserializer": response_deserializer,
        }
        return self, method, deadline, serialization | options


async def _lost(generation: Generation) -> None:
    while generation.channel.get_state() is _READY:
        await generation.wait_for_state_change(_READY)


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one of `waits` is over, and end the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        # A channel that is closed meanwhile ends its waits with an error.
        await asyncio.gather(*tasks, return_exceptions=True)
