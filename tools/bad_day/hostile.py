"""Peers that mean ill: what they send a pod as fast as they can, with a certificate that lets them in."""

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path

from grpc_common.testing.floods import floods

_PAUSE = 0.1
"""Seconds until a connection that was ended is made again."""

_IDLE = 300
"""Connections of a peer that says nothing; k8s/base allows 500 in all."""

FLOODS = floods("/user.UserService/GetUser")

SILENT = "half handshakes"
"""The kind that sends nothing, not even the beginning of TLS."""


async def attack(kind: str, address: str, port: int, certificates: Path, seconds: float) -> None:
    """Attack a pod for so many seconds, again whenever it hangs up."""
    if kind == SILENT:
        peers = [_hold(address, port, seconds) for _ in range(_IDLE)]
    else:
        context = ssl.create_default_context(cafile=certificates / "ca.crt")
        context.check_hostname = False
        context.load_cert_chain(certificates / "tls.crt", certificates / "tls.key")
        context.set_alpn_protocols(["h2"])
        connections, sent = FLOODS[kind]
        peers = [_flood_for_ever(address, port, context, sent) for _ in range(connections)]
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*peers)


async def _hold(address: str, port: int, seconds: float) -> None:
    with suppress(OSError):
        _, writer = await asyncio.open_connection(address, port)
        try:
            await asyncio.sleep(seconds)
        finally:
            writer.transport.abort()


async def _flood_for_ever(address: str, port: int, context: ssl.SSLContext, sent: bytes) -> None:
    while True:
        await _flood(address, port, context, sent)
        await asyncio.sleep(_PAUSE)


async def _flood(address: str, port: int, context: ssl.SSLContext, sent: bytes) -> None:
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(address, port, ssl=context)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_read_all(reader))
                both.create_task(_write(writer, sent))
        finally:
            writer.transport.abort()


async def _write(writer: asyncio.StreamWriter, sent: bytes) -> None:
    with suppress(OSError):
        writer.write(sent)
        await writer.drain()


async def _read_all(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(2**16):
            pass
