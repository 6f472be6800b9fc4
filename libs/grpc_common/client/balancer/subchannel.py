"""The connection to one endpoint, and how many calls are on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cached_property

import grpc

from grpc_common.client.balancer.dialer import Dialer
from grpc_common.client.balancer.outlier_detection import Outcomes
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.resolver.target import endpoint_uri
from grpc_common.observe.channel_metrics import ChannelNumbers

_READY = grpc.ChannelConnectivity.READY


class Subchannel:
    """One channel of grpc.aio for one endpoint; READY means that it is connected and healthy.

    Args:
        endpoint: where it leads.
        dialer: opens it.
        credentials: what it is opened with; None for plaintext.
        on_change: is called each time that its state has changed.
        numbers: of the whole channel that it is a part of.

    """

    def __init__(
        self,
        endpoint: Endpoint,
        dialer: Dialer,
        credentials: grpc.ChannelCredentials | None,
        on_change: Callable[[], object],
        numbers: ChannelNumbers,
    ) -> None:
        self.endpoint = endpoint
        self.credentials = credentials
        self.uri = endpoint_uri(endpoint.address)
        self.in_flight = 0
        self.picks = 0
        """How many calls have begun on it."""
        self.outcomes: Outcomes | None = None
        """Where the ends of its calls are counted, if anyone wants to know."""
        self.ready_since = 0.0
        self._dialer = dialer
        self._on_change = on_change
        self._numbers = numbers
        self._on_idle: Callable[[], object] | None = None
        self.channel = dialer.open(self.uri, credentials)
        self.state = self.channel.get_state(try_to_connect=True)
        self._watch: asyncio.Task[None] | None = asyncio.create_task(self._follow())

    @cached_property
    def blocking(self) -> grpc.Channel:
        """A channel beside it for threads, with a connection of its own; opened when it is asked for."""
        return self._dialer.open_blocking(self.uri, self.credentials)

    def is_ready(self) -> bool:
        """Return whether it would take a call at this very moment, which `state` may learn a moment later."""
        return self.channel.get_state() is _READY

    def refresh(self) -> None:
        """Take note of its state as it is at this very moment."""
        now = self.channel.get_state(try_to_connect=True)
        if now is self.state:
            return
        self.state = now
        if now is _READY:
            self.ready_since = time.monotonic()
            self._numbers.connections += 1
        self._on_change()

    async def _follow(self) -> None:
        while True:
            self.refresh()
            await self.channel.wait_for_state_change(self.state)

    def begin(self) -> None:
        """Count a call that begins."""
        self.in_flight += 1
        self.picks += 1
        self._numbers.picks += 1

    def end(self, *, is_ok: bool) -> None:
        """Count a call that has ended."""
        self.in_flight -= 1
        if self.outcomes is not None:
            self.outcomes.count(is_ok=is_ok)
        if self._on_idle is not None:
            self._check()

    def when_idle(self, on_idle: Callable[[], object] | None) -> None:
        """Call `on_idle` once no call is left; None takes that back."""
        self._on_idle = on_idle
        self._check()

    def _check(self) -> None:
        if self._on_idle is not None and not self.in_flight:
            on_idle, self._on_idle = self._on_idle, None
            on_idle()

    async def close(self) -> None:
        """Close the channels; calls on them are cancelled."""
        watch = self._watch
        if watch is not None:
            self._watch = None  # its traceback leads back to here
            watch.cancel()
            await asyncio.wait([watch])
        await self.channel.close()
        blocking: grpc.Channel | None = self.__dict__.get("blocking")
        if blocking is not None:
            blocking.close()
        self.credentials = None  # the metric of their expiry has them for as long as they are held
