"""Finds the endpoints of a target, or the reason why there are none."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from grpc_common.client.resolver.endpoint import Endpoint, EndpointSource

# Seconds for the first endpoints; a question to a DNS server alone may take 10.
_TIMEOUT = 15.0

# Seconds between two looks at why a source has not found anything, which nothing tells of.
_LOOK = 0.05


class DiagnosisError(Exception):
    """There is nothing to examine; the text says why, and what would help."""


class OverheardEndpoints:
    """A source for a channel, from which someone else learns what it yields, too."""

    def __init__(self, source: EndpointSource) -> None:
        self.source = source
        self.found: list[Endpoint] = []
        self.error: Exception | None = None
        self._before = self.reason
        self._spoke = asyncio.Event()

    @property
    def reason(self) -> str:
        """What the source says is wrong."""
        reason: str = getattr(self.source, "reason", "")
        return reason

    async def watch(self) -> AsyncIterator[Sequence[Endpoint]]:
        """Yield what the source does."""
        try:
            async for found in self.source.watch():
                self.found = [each if isinstance(each, Endpoint) else Endpoint(each) for each in found]
                self._spoke.set()
                yield self.found
        except Exception as error:
            self.error = error
            self._spoke.set()
            raise

    async def first(self) -> list[Endpoint]:
        """Wait until the source has found endpoints, or knows why it can't."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TIMEOUT):
                # What is wrong before the first try is not the answer to it.
                while not self._spoke.is_set() and self.reason in ("", self._before):
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._spoke.wait(), _LOOK)
        if not self.found:
            raise DiagnosisError(self._why())
        return self.found

    def _why(self) -> str:
        if self.error is not None:
            return str(self.error) or repr(self.error)
        silent = "" if self._spoke.is_set() else f"nothing was found within {_TIMEOUT:g} s"
        return self.reason or silent or "it leads to no endpoint"
