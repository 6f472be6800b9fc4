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


class Renewal:
    """Follows the certificate files of a channel.

    Each connection is replaced by one with the new certificate, one after the other and when the new one
    is READY: a certificate that a server refuses never replaces one that works.

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
            if self._new is not None and time.monotonic() >= self._next_try:
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
        before = list(self._balancer.subchannels.values())
        if not any(each.state is _READY for each in before):
            self._balancer.dialer.credentials = new  # there is nothing to lose
        refusing = [each.endpoint.address for each in before if not await self._replaced(each, new)]
        if refusing:
            self._next_try = time.monotonic() + _REFUSED_INTERVAL
            self._log_refusal([f"{address} does not take it" for address in refusing])
        else:
            self._balancer.dialer.credentials, self._new = new, None

    async def _replaced(self, old: Subchannel, new: grpc.ChannelCredentials) -> bool:
        """Return whether a connection has the new certificate now, or is gone."""
        if old.credentials is new or self._balancer.subchannels.get(old.endpoint.address) is not old:
            return True
        subchannel = self._balancer.open(old.endpoint, new)
        is_taken = False
        try:
            is_taken = await self._is_taken(subchannel, old)
        finally:
            if not is_taken:
                await subchannel.close()
        if is_taken:
            self._balancer.replace(subchannel)
            if subchannel.state is _READY:
                self._balancer.dialer.credentials = new
        return is_taken

    async def _is_taken(self, new: Subchannel, old: Subchannel) -> bool:
        """Return whether the new connection is at least as good as the old one."""
        try:
            async with asyncio.timeout(_HANDSHAKE):
                while old.state is _READY and new.state not in (_READY, _FAILURE):
                    await self._balancer.wait_for_change()
        except TimeoutError:
            return False
        return new.state is _READY or old.state is not _READY

    def _log_refusal(self, reasons: list[str]) -> None:
        log.warning("new certificate refused, the old one stays in use", target=self._target, reasons=reasons)
