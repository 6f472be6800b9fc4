"""One of the channels that a client has had, one after the other, and what is needed of their owner."""

import asyncio
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import grpc

from grpc_common.core.calls import Interceptor
from grpc_common.observe.observers import Observers


class Generation:
    """One channel of grpc's, and how many calls are on it."""

    def __init__(
        self, channel: grpc.aio.Channel, open_blocking: Callable[[], grpc.Channel | None] = lambda: None
    ) -> None:
        self.channel = channel
        self._open_blocking = open_blocking
        self._calls = 0
        self._on_idle: Callable[[], object] | None = None
        self._watch: asyncio.Task[None] | None = None

    @cached_property
    def blocking(self) -> grpc.Channel | None:
        """A channel beside it for threads, opened when first it is asked for; None if there can be none."""
        return self._open_blocking()

    async def close(self, grace: float | None = None) -> None:
        """Close the channels; calls that have not ended after `grace` seconds are cancelled."""
        await self.channel.close(grace)
        blocking: grpc.Channel | None = self.__dict__.get("blocking")
        if blocking is not None:
            blocking.close()

    def count(self, call: grpc.aio.Call) -> None:
        """Have `call` keep the channel open until it ends."""
        self._calls += 1
        call.add_done_callback(self._ended)

    def when_idle(self, on_idle: Callable[[], object]) -> None:
        """Call `on_idle` once no call is left; no call starts after this one."""
        self._on_idle = on_idle
        self._check()

    def _ended(self, _call: grpc.aio.Call) -> None:
        self._calls -= 1
        self._check()

    def _check(self) -> None:
        if self._on_idle is not None and not self._calls:
            self._on_idle()

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the state is another one; any number may wait, and stop to.

        C-core keeps each watch that is given up until the state changes, so that all share one.
        """
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self.channel.wait_for_state_change(last_observed_state))
        await asyncio.wait([self._watch])


class Generations(Protocol):
    """Says on which channel a call is to be made."""

    target: str
    """The channels' common name."""

    observers: Observers

    interceptors: Sequence[Interceptor]

    current: Generation | None
    """The one for calls that begin now; None without an endpoint."""

    def is_ready(self) -> bool:
        """Return whether an endpoint would take a call now."""

    async def usable(self, *, wait_for_ready: bool) -> Generation:
        """Return the generation to make a call on, as soon as there is one."""
