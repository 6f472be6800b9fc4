"""Floods: what one peer sends as fast as it can, as bytes of HTTP/2 made by hand."""

import gzip
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from grpc_common.testing.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HELLO,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    literal,
    request,
)

_PATIENCE = 20
"""Seconds that the other side gets to take what is sent."""

_UNZIPPED = 9 * 2**20
"""Bytes of a message that is sent as 9 kB: less than the limit that messages have by default."""


class Flood(NamedTuple):
    """What each of some connections sends."""

    connections: int
    sent: bytes


def streams(count: int, one: Callable[[int], bytes]) -> bytes:
    """Return a greeting and `count` streams, each of which `one` makes of its number."""
    return HELLO + b"".join(one(stream) for stream in range(1, 2 * count, 2))


def headers(stream: int, block: bytes) -> bytes:
    """Return the beginning of a call."""
    return frame(HEADERS, stream, block, flags=END_HEADERS)


def floods(path: str) -> dict[str, Flood]:
    """Return floods by their names; those of calls are for the method at `path`."""
    call = request(path)

    def reset(stream: int) -> bytes:
        return headers(stream, call) + frame(RST_STREAM, stream, bytes(4))

    def answered_and_reset(stream: int) -> bytes:
        message = frame(DATA, stream, b"\0\0\0\0\1x", flags=END_STREAM)
        return headers(stream, call) + message + frame(RST_STREAM, stream, bytes(4))

    def endless_block(stream: int) -> bytes:  # 15 MB
        more = literal(b"x-a", b"v" * 15_000)
        return frame(HEADERS, stream, call) + frame(CONTINUATION, stream, more) * 1000

    def beginning(**more: str) -> Callable[[int], bytes]:
        block = request(path, **more)
        return lambda stream: headers(stream, block)

    opened = HELLO + headers(1, call)
    return {
        "calls without a message": Flood(10, streams(10_000, beginning())),
        "calls that are reset": Flood(2, streams(20_000, reset)),
        "calls with a message that are reset": Flood(2, streams(20_000, answered_and_reset)),
        "bad deadlines": Flood(2, streams(20_000, beginning(grpc_timeout="1x"))),
        "paths that are not UTF-8": Flood(
            2, streams(5_000, lambda stream: headers(stream, request("/\xff/é")))
        ),
        "unknown methods": Flood(2, streams(5_000, lambda stream: headers(stream, request(f"/a/{stream}")))),
        "headers of 15 kB": Flood(
            2, streams(1_000, lambda stream: headers(stream, call + literal(b"x", b"v" * 15_000)))
        ),
        "headers without end": Flood(2, streams(2, endless_block)),
        "SETTINGS": Flood(2, HELLO + frame(SETTINGS, payload=b"\0\4\0\1\0\0") * 50_000),
        "PING": Flood(2, HELLO + frame(PING, payload=bytes(8)) * 50_000),
        "PRIORITY": Flood(2, HELLO + frame(PRIORITY, 1, bytes(5)) * 50_000),
        "WINDOW_UPDATE": Flood(2, HELLO + frame(WINDOW_UPDATE, 0, (1).to_bytes(4)) * 50_000),
        "GOAWAY": Flood(2, HELLO + frame(GOAWAY, payload=bytes(8)) * 50_000),
        "empty DATA": Flood(2, opened + frame(DATA, 1) * 100_000),
        "empty CONTINUATION": Flood(2, HELLO + frame(HEADERS, 1, call) + frame(CONTINUATION, 1) * 100_000),
        "unknown frames": Flood(2, HELLO + frame(77, 0, bytes(1000)) * 5_000),
    }


def swelling(path: str) -> dict[str, Flood]:
    """Return floods of few bytes that C-core makes many of."""
    small = gzip.compress(bytes(_UNZIPPED))
    message = b"\1" + len(small).to_bytes(4) + small
    zipped = request(path, grpc_encoding="gzip")
    # 4 MB of metadata in 5 kB: a thousand references to one header.
    references = request(path) + literal(b"x", b"v" * 3_900, indexed=True) + b"\xbe" * 1000

    def bomb(stream: int) -> bytes:
        return headers(stream, zipped) + frame(DATA, stream, message, flags=END_STREAM)

    return {
        "gzip": Flood(10, streams(100, bomb)),
        "references": Flood(2, streams(100, lambda stream: headers(stream, references))),
    }


def unacknowledged(path: str) -> dict[str, Flood]:
    """Return floods of peers that never acknowledge SETTINGS, whom C-core holds to 16 MiB of headers alone.

    Each connection has one header block, which does not end.
    """
    call = request(path)
    large = b"v" * 16_000_000

    def endless(*frames: bytes) -> Flood:
        first, *more = frames
        return Flood(
            2, HELLO + frame(HEADERS, 1, first) + b"".join(frame(CONTINUATION, 1, one) for one in more)
        )

    def cut_short(header: bytes) -> Flood:
        return endless(call, *(header[start : start + 2**14] for start in range(0, len(large), 2**14)))

    return {
        "small headers without end": endless(call, *[literal(b"a", b"") * 4_000] * 1_000),
        "a value without end": cut_short(literal(b"x", large)),
        "a name without end": cut_short(literal(large, b"x")),
        "references without end": endless(
            call + literal(b"x", b"v" * 3_900, indexed=True), *[b"\xbe" * 16_000] * 100
        ),
        "static references without end": endless(call, *[b"\x90" * 16_000] * 1_000),
    }


def send(port: int, sent: bytes) -> None:
    """Connect, send this while reading all that comes, and hang up a moment later."""
    with socket.create_connection(("127.0.0.1", port)) as connection, suppress(OSError):
        connection.settimeout(_PATIENCE)
        reader = threading.Thread(target=_read_all, args=(connection,))
        reader.start()
        with suppress(OSError):
            connection.sendall(sent)
            reader.join(0.3)
        connection.shutdown(socket.SHUT_RDWR)
        reader.join()


def _read_all(connection: socket.socket) -> None:
    """Read until the other side hangs up."""
    with suppress(OSError):
        while connection.recv(2**16):
            pass
