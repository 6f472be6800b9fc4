"""What is known of a service's EndpointSlices, and where the next request to the API server starts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from grpc_common.client.resolver.api_error import ApiError
from grpc_common.client.resolver.endpoint_slices import EndpointSlice, Version, name_of, read_slice
from grpc_common.core.errors import excerpt

if TYPE_CHECKING:
    from grpc_common.client.resolver.kubernetes_api import SliceList, WatchEvent

log = structlog.get_logger()


class WentBackError(ValueError):
    """The API server knows less than it did, as after a restored backup, or is another one."""


@dataclass
class KnownSlices:
    """The slices of a service as the API server told them."""

    port: int | str | None
    slices: dict[str, EndpointSlice] = field(default_factory=dict)
    version: int = 0
    """The newest that is known, where the next watch starts."""

    not_before: str | None = "0"
    """For the next list, the version that the API server must have, or an empty text for that of its
    storage; None if no list is needed. It is as in client-go's reflector: nobody reads the storage,
    etcd, as long as a cache is not older than what is known."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def replace(self, listed: SliceList) -> None:
        """Take a list as the truth.

        Raises:
            ValueError: it is older than what is known, though it is not what the storage holds.

        """
        if self.not_before and listed.version < self.version:
            raise WentBackError(f"the API server lists version {listed.version} after {self.version}")
        slices = {}
        for content in listed.items:
            piece = await self._read(content)
            slices[piece.name] = piece
        self.slices, self.version, self.not_before = slices, listed.version, None
        self.changed.set()

    async def apply(self, event: WatchEvent) -> None:
        """Take note of an event.

        Raises:
            ValueError: it makes no sense, or is older than what is known.

        """
        version = Version.model_validate(event.object.get("metadata")).resource_version
        if version < self.version:
            raise WentBackError(f"the API server went back from version {self.version} to {version}")
        if event.type in ("ADDED", "MODIFIED"):
            piece = await self._read(event.object)
            self.slices[piece.name] = piece
        elif event.type == "DELETED":
            self.slices.pop(name_of(event.object), None)
        self.version = version
        self.changed.set()

    def failed(self, error: Exception) -> None:
        """Choose where the next connection starts.

        A broken connection or an overloaded API server says nothing about the slices, so the watch
        goes on where it was. Whatever else was said, not understood, or not said at all, a new list
        settles it best.
        """
        api_error = error if isinstance(error, ApiError) else None
        if isinstance(error, OSError) or (api_error and api_error.passing):
            return
        if self.not_before is None:
            self.not_before = str(self.version)
        elif isinstance(error, WentBackError) or (api_error and api_error.version_unavailable):
            self.not_before = ""

    async def _read(self, content: object) -> EndpointSlice:
        piece = await read_slice(content, self.port)
        before = self.slices.get(piece.name)
        if piece.complaint and (before is None or piece.complaint != before.complaint):
            log.warning("EndpointSlice makes no sense", slice=excerpt(piece.name), reason=piece.complaint)
        return piece
