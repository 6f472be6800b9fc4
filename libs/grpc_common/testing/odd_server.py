"""An HTTP/2 server that answers calls as no gRPC server does: for what clients make of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from grpc_common.testing.http2 import (
    ACK,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    fields,
    frame,
)

_PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_EVERY_STREAM = 0x7FFFFFFF

REFUSED_STREAM, ENHANCE_YOUR_CALM = 7, 11


class OddCall:
    """One call, and the connection that it came on."""

    def __init__(self, writer: asyncio.StreamWriter, stream: int) -> None:
        self._writer = writer
        self._stream = stream

    def headers(self) -> None:
        """Begin the answer."""
        block = fields(_status="200", content_type="application/grpc")
        self._writer.write(frame(HEADERS, self._stream, block, flags=END_HEADERS))

    def message(self, payload: bytes) -> None:
        """Send a message."""
        self._writer.write(frame(0, self._stream, b"\0" + len(payload).to_bytes(4) + payload))

    def status(self, code: int, text: str = "", **trailers: str) -> None:
        """End the answer, which need not have begun."""
        named = {"grpc_status": str(code), "grpc_message": text, **trailers}
        block = fields(_status="200", content_type="application/grpc", **named)
        self._writer.write(frame(HEADERS, self._stream, block, flags=END_HEADERS | END_STREAM))

    def reset(self, code: int) -> None:
        """End the call's stream with an error of HTTP/2."""
        self._writer.write(frame(RST_STREAM, self._stream, code.to_bytes(4)))

    def goaway(self, *, is_seen: bool, code: int = 0) -> None:
        """Announce the end of the connection, with the word that this call is done or is not."""
        last = self._stream if is_seen else 0
        for each in (_EVERY_STREAM, last):  # as servers do that drain
            self._writer.write(frame(GOAWAY, 0, each.to_bytes(4) + code.to_bytes(4)))

    def hang_up(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()


class OddServer:
    """Counts the calls that come, and has `answer` answer each of them."""

    def __init__(self, answer: Callable[[OddCall], Awaitable[None]]) -> None:
        self.calls = 0
        self.address = ""
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(_PREFACE)
            writer.write(frame(SETTINGS))
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3]))
                self._take(writer, head[3], head[4], int.from_bytes(head[5:]), payload)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    def _take(self, writer: asyncio.StreamWriter, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in {SETTINGS, PING} and not flags & ACK:
            writer.write(frame(kind, 0, payload if kind == PING else b"", flags=ACK))
        if kind == HEADERS:
            self.calls += 1
            task = asyncio.ensure_future(self._answered(OddCall(writer, stream)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answered(self, call: OddCall) -> None:
        await self._answer(call)

    @classmethod
    @asynccontextmanager
    async def serving(cls, answer: Callable[[OddCall], Awaitable[None]]) -> AsyncIterator[OddServer]:
        """Serve on a free port."""
        server = cls(answer)
        listening = await asyncio.start_server(server._serve, "127.0.0.1", 0)
        host, port = listening.sockets[0].getsockname()
        server.address = f"{host}:{port}"
        try:
            yield server
        finally:
            listening.close()
            listening.close_clients()
            for task in list(server._tasks):
                task.cancel()
