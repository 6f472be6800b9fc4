"""The calls of one channel, and what they have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from grpc_common.client.balancer.balancer import Balancer
from grpc_common.client.balancer.subchannel import Subchannel
from grpc_common.client.call.errors import rpc_error
from grpc_common.client.call.retry import Throttle
from grpc_common.core.calls import Interceptor
from grpc_common.observe.observers import Observers


class Running(Protocol):
    """A call that has not ended."""

    def abort(self, error: Exception) -> None:
        """End it at once, with an error."""


@dataclass(slots=True, eq=False)
class Calls:
    """What the calls of a channel share."""

    target: str
    """The channel's name in errors and for observers."""

    balancer: Balancer
    observers: Observers
    interceptors: Sequence[Interceptor]
    throttle: Throttle
    reason: Callable[[], str]
    """Says why there is no endpoint, if that is known."""
    running: set[Running] = field(default_factory=set)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    is_closing: bool = False
    """Whether new calls are refused."""

    def begun(self, call: Running) -> None:
        """Take note of a call that begins."""
        self.running.add(call)

    def ended(self, call: Running) -> None:
        """Take note of a call that has ended."""
        self.running.discard(call)
        if not self.running:
            self.idle.set()

    async def subchannel(self, tried: Collection[Subchannel], *, wait_for_ready: bool) -> Subchannel:
        """Return the subchannel for a call, as soon as there is one.

        Args:
            tried: on which it has failed; another one is taken if there is any.
            wait_for_ready: whether it waits though all endpoints fail.

        Raises:
            grpc.aio.AioRpcError: UNAVAILABLE if there is no endpoint and the call does not wait, CANCELLED if
                the channel is closed.

        """
        while (found := self._subchannel(tried, wait_for_ready=wait_for_ready)) is None:
            await self.balancer.wait_to_pick()
        return found

    def _subchannel(self, tried: Collection[Subchannel], *, wait_for_ready: bool) -> Subchannel | None:
        if picked := self.balancer.pick(tried):
            return picked
        state = self.balancer.state()
        if state is grpc.ChannelConnectivity.SHUTDOWN:
            raise rpc_error(grpc.StatusCode.CANCELLED, f"the channel to {self.target} is closed")
        if state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE or wait_for_ready:
            return None
        if failing := self.balancer.failing():
            return failing
        reason = self.reason()
        text = f"{self.target} has no endpoint that is ready{reason and ': '}{reason}"
        raise rpc_error(grpc.StatusCode.UNAVAILABLE, text)

    async def close(self, grace: float | None) -> None:
        """Refuse new calls, wait for the others at most `grace` seconds, and cancel those that are left."""
        self.is_closing = True
        if grace and self.running:
            self.idle.clear()
            await asyncio.wait([asyncio.ensure_future(self.idle.wait())], timeout=grace)
        for call in list(self.running):
            call.abort(self.closed())

    def closed(self) -> grpc.aio.AioRpcError:
        """Return the error of a call on a closed channel."""
        return rpc_error(grpc.StatusCode.CANCELLED, f"the channel to {self.target} is closed")
