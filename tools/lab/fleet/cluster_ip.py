"""A Service's virtual address: kube-proxy picks a pod for each connection, and knows nothing of calls."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

_CHUNK = 1 << 16
"""Bytes that are forwarded at a time."""


class ClusterIp:
    """Forwards each connection to a pod at random, where it stays until one end closes it."""

    def __init__(self) -> None:
        self.backends: Sequence[str] = ()
        """HOST:PORT of the pods that new connections may get; without any they are refused."""
        self.target = ""
        """Where it takes connections."""
        self._random = random.Random()  # noqa: S311 (no secret)
        self._relays: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Take connections until the end of the block, which cuts them."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.target = "{}:{}".format(*server.sockets[0].getsockname())
        try:
            yield
        finally:
            server.close()
            for relay in self._relays:
                relay.cancel()
            await asyncio.gather(*self._relays, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.create_task(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.backends:
                await _join(reader, writer, self._random.choice(self.backends))
        finally:
            writer.transport.abort()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, backend: str) -> None:
    host, _, port = backend.rpartition(":")
    with suppress(OSError):
        pod_reader, pod_writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_copy(reader, pod_writer))
                directions.create_task(_copy(pod_reader, writer))
        finally:
            pod_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward one direction with its end; the other goes on until its own."""
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
        return
    writer.transport.abort()
