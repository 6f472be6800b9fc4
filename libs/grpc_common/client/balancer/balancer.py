"""Keeps a subchannel for each endpoint, and chooses one for each call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from random import random
from typing import Any

import grpc

from grpc_common.client.balancer.dialer import Dialer
from grpc_common.client.balancer.outlier_detection import OutlierDetector
from grpc_common.client.balancer.picker import Picker
from grpc_common.client.balancer.policy import Choice, Policy
from grpc_common.client.balancer.subchannel import Subchannel
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.observe.channel_metrics import ChannelNumbers

_READY = grpc.ChannelConnectivity.READY
_CONNECTING = grpc.ChannelConnectivity.CONNECTING
_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_SHUTDOWN = grpc.ChannelConnectivity.SHUTDOWN

_BATCH = 5
"""Subchannels that are opened or closed without a pause; each takes 0.1 to 1 ms."""

_PAUSE = 0.001
"""Seconds: C-core's thread, which tells of responses, gets the interpreter only while the loop rests."""

_MOMENT = 0.2
"""Seconds over which a crowd of calls spreads: most pods of a fleet connect in it, and no caller minds it."""


class Balancer:
    """Connects to what its resolver finds, once for each endpoint.

    Args:
        dialer: opens channels.
        policy: makes pickers.
        choice: which of the endpoints that are found this client connects to.
        outliers: leaves out those whose calls fail.

    """

    def __init__(
        self,
        dialer: Dialer,
        policy: Policy,
        choice: Choice,
        outliers: OutlierDetector | None = None,
    ) -> None:
        self.dialer = dialer
        self.subchannels: dict[str, Subchannel] = {}
        """Those that take new calls, by address."""
        self.numbers = ChannelNumbers()

        self._policy = policy
        self._choose = choice
        self._outliers = outliers
        self._retired: set[Subchannel] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._picker: Picker[Subchannel] | None = None
        self._is_known = self._is_closed = False
        self._waiting: asyncio.Future[None] | None = None
        self._crowd = 0
        """How many calls wait for a subchannel."""

    async def update(self, found: Sequence[Endpoint]) -> None:
        """Take these endpoints as the truth: no call begins on any other one from now on."""
        chosen = {endpoint.address: endpoint for endpoint in self._choose(_serving(found))}
        if self._is_closed or (self._is_known and chosen == self._known()):
            return
        gone = [self.subchannels.pop(address) for address in self.subchannels.keys() - chosen.keys()]
        self._retired.update(gone)
        self._is_known = True
        for address, known in self.subchannels.items():
            known.endpoint = chosen[address]
        self.changed()
        new = [endpoint for address, endpoint in chosen.items() if address not in self.subchannels]
        await _in_batches(self._take, new)
        self.changed()
        if gone:
            self._in_background(_in_batches(self._let_go, gone))

    def _known(self) -> dict[str, Endpoint]:
        return {address: each.endpoint for address, each in self.subchannels.items()}

    def _take(self, endpoint: Endpoint) -> None:
        subchannel = self._revived(endpoint.address) or self.open(endpoint)
        subchannel.endpoint = endpoint
        self._use(subchannel)

    def _use(self, subchannel: Subchannel) -> None:
        address = subchannel.endpoint.address
        if self._outliers is not None:
            subchannel.outcomes = self._outliers.outcomes(address)
        self.subchannels[address] = subchannel

    async def sweep(self, interval: float) -> None:
        """Judge the endpoints each `interval` seconds by how their calls have ended; never returns."""
        while self._outliers is not None:
            await asyncio.sleep(interval)
            if self._outliers.sweep(time.monotonic(), self.subchannels.keys()):
                self.numbers.ejections = self._outliers.ejections
                self.changed()

    def open(self, endpoint: Endpoint, credentials: grpc.ChannelCredentials | None = None) -> Subchannel:
        """Return a new subchannel, which is not in use yet."""
        credentials = credentials or self.dialer.credentials
        return Subchannel(endpoint, self.dialer, credentials, self.changed, self.numbers)

    def _revived(self, address: str) -> Subchannel | None:
        """Return a subchannel that was let go and still has calls."""
        for old in self._retired:
            if old.endpoint.address == address and old.credentials is self.dialer.credentials:
                old.when_idle(None)
                self._retired.discard(old)
                return old
        return None

    def replace(self, new: Subchannel) -> None:
        """Have `new` take the calls of the subchannel to the same endpoint, if that is still there."""
        old = self.subchannels.get(new.endpoint.address)
        if old is None:
            self._retire(new)
            return
        new.endpoint = old.endpoint  # its attributes may have changed since the new one was opened
        self._use(new)
        self._retire(old)
        self.changed()

    def _retire(self, subchannel: Subchannel) -> None:
        """Close it once its calls have ended; it must be out of `subchannels`."""
        self._retired.add(subchannel)
        self._let_go(subchannel)

    def _let_go(self, subchannel: Subchannel) -> None:
        if subchannel in self._retired:  # and not in use again
            subchannel.when_idle(lambda: self._close(subchannel))

    def _close(self, subchannel: Subchannel) -> None:
        self._retired.discard(subchannel)
        self._in_background(subchannel.close())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def changed(self) -> None:
        """Have the next call see what has changed, and calls that wait look again."""
        self._picker = None
        if self._waiting is not None:
            self._waiting.set_result(None)
            self._waiting = None

    async def wait_for_change(self) -> None:
        """Wait until `changed` is called; any number may wait, and stop to."""
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._waiting)

    async def wait_to_pick(self) -> None:
        """Wait for a change, as a call does for which there is no subchannel.

        A crowd of calls does not go to the first one that is READY while others are about to be: those that
        are more than the endpoints spread over a moment.
        """
        self._crowd += 1
        try:
            await self.wait_for_change()
            is_crowd = self._crowd > len(self.subchannels)
        finally:
            self._crowd -= 1
        if is_crowd and {_READY, _CONNECTING} <= {each.state for each in self.subchannels.values()}:
            await asyncio.sleep(random() * _MOMENT)  # noqa: S311 (no secret)

    def pick(self, tried: Collection[Subchannel] = ()) -> Subchannel | None:
        """Return the READY subchannel for a call, or None if there is none.

        Args:
            tried: on which it has failed; another one is taken if there is any.

        """
        while True:
            if self._picker is None:
                ready = self._ready()
                if not ready:
                    return None
                self._picker = self._policy(ready, [each.endpoint for each in self.subchannels.values()])
            picked = self._picker.pick(tried)
            if picked.is_ready():
                return picked
            picked.refresh()

    def _ready(self) -> list[Subchannel]:
        ready = [each for each in self.subchannels.values() if each.state is _READY]
        if self._outliers is None:
            return ready
        ejected = self._outliers.ejected([each.endpoint.address for each in ready])
        return [each for each in ready if each.endpoint.address not in ejected]

    def failing(self) -> Subchannel | None:
        """Return a subchannel on which a call fails at once, with the reason."""
        return next((each for each in self.subchannels.values() if each.state is _FAILURE), None)

    def state(self) -> grpc.ChannelConnectivity:
        """Return the state of all together: READY if one is, and TRANSIENT_FAILURE if all are."""
        if self._is_closed:
            return _SHUTDOWN
        if not self._is_known:
            return _CONNECTING
        states = {each.state for each in self.subchannels.values()}
        if _READY in states:
            return _READY
        return _CONNECTING if states - {_FAILURE} else _FAILURE

    @property
    def is_known(self) -> bool:
        """Whether the endpoints are known."""
        return self._is_known

    def all_ready(self) -> bool:
        """Return whether every endpoint takes calls."""
        return all(each.state is _READY for each in self.subchannels.values())

    def states(self) -> dict[str, str]:
        """Return the state of each endpoint, by address: gRPC's, or ejected; in any thread."""
        subchannels = list(self.subchannels.values())
        addresses = [each.endpoint.address for each in subchannels]
        ejected = self._outliers.ejected(addresses) if self._outliers is not None else ()
        states = {each.endpoint.address: each.state.name.lower() for each in subchannels}
        return states | dict.fromkeys(ejected, "ejected")

    async def close(self) -> None:
        """Close every subchannel; calls on them are cancelled."""
        self._is_closed = True
        every: list[Any] = [*self.subchannels.values(), *self._retired]
        self.subchannels, self._retired = {}, set()
        self.changed()
        await asyncio.gather(*(each.close() for each in every), *self._closing)
        self.dialer.credentials = None


async def _in_batches[T](work: Callable[[T], object], items: Collection[T]) -> None:
    for number, item in enumerate(items, 1):
        work(item)
        if number % _BATCH == 0:
            await asyncio.sleep(_PAUSE)


def _serving(found: Sequence[Endpoint]) -> Sequence[Endpoint]:
    """Leave out what is on its way out, unless nothing else is there: kube-proxy does the same."""
    return [endpoint for endpoint in found if not endpoint.terminating] or found
