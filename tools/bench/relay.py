"""Gives h2load, which has no client certificates, a plaintext port to a server with mutual TLS.

It is a process of its own, and its CPU time is not counted: only the server's is.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_CHUNK = 2**18


def relay(port: int, certificates: str, started: Callable[[int], None], wait: Callable[[], object]) -> None:
    """Pass bytes on to `port` over mutual TLS; tell `started` the own port, and end when `wait` returns."""
    asyncio.run(_relay(port, certificates, started, wait))


async def _relay(
    port: int, certificates: str, started: Callable[[int], None], wait: Callable[[], object]
) -> None:
    context = _context(Path(certificates))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, onward = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )
            await asyncio.gather(_copy(reader, onward), _copy(there, writer))

    async with await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024) as server:
        started(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(wait)
        server.close_clients()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    writer.close()


def _context(certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates / "ca.crt")
    context.load_cert_chain(certificates / "tls.crt", certificates / "tls.key")
    context.set_alpn_protocols(["h2"])
    return context
