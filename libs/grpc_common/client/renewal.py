"""Has the connections of a channel use a new certificate, once a server has taken it."""

from __future__ import annotations

import asyncio
import time

import grpc
import structlog

from grpc_common.client.balancer.balancer import Balancer
from grpc_common.client.balancer.subchannel import Subchannel
from grpc_common.tls.credentials import ClientTLS, TlsError

log = structlog.get_logger()

_READY = grpc.ChannelConnectivity.READY
_FAILURE = grpc.ChannelConnectivity.TRANSIENT_FAILURE

# Seconds between two looks at the certificate files; the kubelet takes up to a minute to bring new ones.
_INTERVAL = 1.0

# Seconds until a server that has refused the new certificate is asked again: it may learn of a new CA.
_REFUSED_INTERVAL = 10.0

# Seconds for one handshake.
_HANDSHAKE = 10.0

# Servers that one line of the log names.
_MOST_NAMES = 5


class Renewal:
    """Follows the certificate files of a channel.

    Each connection is replaced by one with the new certificate, one after the other and when the new one
    is READY: a certificate that a server refuses never replaces one that works. Where the old one does not
    work either, the new one is tried at each look. New endpoints are dialled with the old certificate until
    all have taken the new one, so that it is the better of the two that each of them gets.

    Args:
        target: names the channel in the log.
        tls: the files.
        balancer: has the connections.
        fingerprint: that of the files which the balancer's credentials are from.

    """

    def __init__(self, target: str, tls: ClientTLS, balancer: Balancer, fingerprint: object) -> None:
        self._target = target
        self._tls = tls
        self._balancer = balancer
        self._fingerprint = fingerprint
        self._unusable: object = None
        self._new: grpc.ChannelCredentials | None = None
        self._next_try = 0.0

    async def run(self) -> None:
        """Look at the files again and again; never returns."""
        while True:
            await asyncio.sleep(_INTERVAL)
            if (fingerprint := self._tls.fingerprint()) != self._fingerprint:
                await self._read(fingerprint)
            if self._new is not None:
                await self._renew(self._new)

    async def _read(self, fingerprint: object) -> None:
        try:
            self._new = await asyncio.to_thread(self._tls.credentials)
        except TlsError as error:
            # It is tried again all the same: a certificate that is not valid yet will be.
            if fingerprint != self._unusable:
                self._unusable = fingerprint
                self._log_refusal(str(error).splitlines())
        else:
            self._fingerprint, self._next_try = fingerprint, 0.0

    async def _renew(self, new: grpc.ChannelCredentials) -> None:
        await asyncio.gather(*(self._replaced(each, new) for each in self._with_old(new, _FAILURE)))
        if time.monotonic() < self._next_try:
            return
        unproven = [each for each in self._with_old(new, _READY) if not await self._replaced(each, new)]
        if unproven:
            self._next_try = time.monotonic() + _REFUSED_INTERVAL
        if refusing := [each.endpoint.address for each in unproven if each.state is _READY]:
            self._log_refusal(_named(refusing))
        elif self._is_in_use(new) and not self._with_old(new, _READY):
            self._finish(new)

    def _with_old(self, new: grpc.ChannelCredentials, *states: grpc.ChannelConnectivity) -> list[Subchannel]:
        """Return those in one of these states that don't have the new certificate."""
        every = self._balancer.subchannels.values()
        return [each for each in every if each.credentials is not new and each.state in states]

    def _is_in_use(self, new: grpc.ChannelCredentials) -> bool:
        every = self._balancer.subchannels.values()
        return not every or any(each.credentials is new for each in every)

    def _finish(self, new: grpc.ChannelCredentials) -> None:
        """Have those use it too that don't work now, since every server that could be asked has taken it."""
        self._balancer.dialer.credentials, self._new = new, None
        for each in self._with_old(new, *grpc.ChannelConnectivity):
            self._balancer.replace(self._balancer.open(each.endpoint, new))

    async def _replaced(self, old: Subchannel, new: grpc.ChannelCredentials) -> bool:
        """Return whether a connection has the new certificate now, or is gone."""
        if not self._is_used(old):
            return True
        subchannel = self._balancer.open(old.endpoint, new)
        is_taken = False
        try:
            is_taken = await self._is_taken(subchannel)
        finally:
            if not is_taken:
                await subchannel.close()
        if is_taken:
            self._balancer.replace(subchannel)
        return is_taken

    def _is_used(self, subchannel: Subchannel) -> bool:
        return self._balancer.subchannels.get(subchannel.endpoint.address) is subchannel

    async def _is_taken(self, new: Subchannel) -> bool:
        """Return whether the server takes the new certificate."""
        try:
            async with asyncio.timeout(_HANDSHAKE):
                while new.state not in (_READY, _FAILURE):
                    await self._balancer.wait_for_change()
        except TimeoutError:
            return False
        return new.state is _READY

    def _log_refusal(self, reasons: list[str]) -> None:
        log.warning("new certificate refused, the old one stays in use", target=self._target, reasons=reasons)


def _named(refusing: list[str]) -> list[str]:
    reasons = [f"{address} does not take it" for address in refusing[:_MOST_NAMES]]
    more = len(refusing) - len(reasons)
    return [*reasons, f"and {more} more"] if more else reasons
