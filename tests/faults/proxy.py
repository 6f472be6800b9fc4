"""A TCP proxy in front of a database or a pod, that fails as networks do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

from tests.programs import Server, running_server

_CHUNK = 65536
"""Bytes that are forwarded at a time."""

STATEMENT = b"B"
"""Begins what is sent to execute a statement: PostgreSQL's message Bind. Cut there, it never happens."""

ANSWER = b"2\0\0\0\4"
"""Begins the answer to it: BindComplete. By then the statement is committed, and nobody learns of it."""


class Proxy:
    """Forwards connections to `port` of `host`."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host, self._port = host, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._gate = _open_gate()
        self._silenced: list[asyncio.Event] = []
        """Nothing else leads to the tasks behind these once both ends are gone; asyncio would complain."""
        self.cut_at: bytes | None = None
        """STATEMENT or ANSWER: a connection is cut before it passes."""
        self.delay = 0.0
        """Seconds that everything waits before it passes."""

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def move_to(self, port: int) -> None:
        """Forward new connections to another port, as an address that moves to another server."""
        self._port = port

    def silence(self) -> None:
        """Forward nothing any more, not even the end of a connection."""
        self._gate.clear()

    def heal(self) -> None:
        """Forward what was held up since `silence`, as TCP does once packets come through again."""
        self._gate.set()

    def resume(self) -> None:
        """Forward what comes over new connections; the silenced ones stay so."""
        self._silenced.append(self._gate)
        self._gate = _open_gate()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client with the database until one of them ends."""
        gate = self._gate
        with suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
            ends = {writer, there_writer}
            self._writers |= ends
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._forward(reader, there_writer, ends, gate))
                directions.create_task(self._forward(there_reader, writer, ends, gate))
            self._writers -= ends
            return
        writer.transport.abort()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: set[asyncio.StreamWriter],
        gate: asyncio.Event,
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                await gate.wait()
                await asyncio.sleep(self.delay)
                if self.cut_at and chunk.startswith(self.cut_at):
                    break
                writer.write(chunk)
                await writer.drain()
        for end in ends:
            end.transport.abort()


@asynccontextmanager
async def server_behind_proxy(url: str, **variables: str) -> AsyncIterator[tuple[Server, Proxy]]:
    """Run a server, with variables of its environment, that reaches the database of `url` through a proxy."""
    port = urlsplit(url).port
    assert port
    proxy = Proxy(port)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    own_port = listener.sockets[0].getsockname()[1]
    with ExitStack() as stack:
        server = running_server(url.replace(f":{port}/", f":{own_port}/"), **variables)
        # In a thread, since the server's first connection needs the proxy.
        yield await asyncio.to_thread(stack.enter_context, server), proxy
    listener.close()
    proxy.cut()


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate
