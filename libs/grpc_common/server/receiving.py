"""Decompresses requests in Python, a few large ones at a time.

C-core decompresses a message of each call whose message is read, all at the same time: a hundred of 9 kB on
one connection took 1.7 GB. So it is told to leave messages as they are (`OPTIONS`), and the server does it.
C-core does not tell which of a call's messages are compressed. gzip's first byte, 0x1F, does: no protobuf
message starts with it, for it would be a field of wire type 7.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from grpc_common.core.errors import StatusError

OPTIONS = [
    ("grpc.per_message_decompression", 0),
    # Identity and gzip. Nothing marks the beginning of a deflated message; who sends one gets UNIMPLEMENTED.
    ("grpc.compression_enabled_algorithms_bitset", 0b101),
]

_GZIP = b"\x1f\x8b\x08"
_GZIP_FORMAT = 16 + zlib.MAX_WBITS

_SMALL = 2**16
"""Bytes up to which a message is decompressed at once."""

_MEMORY = 32 * 2**20
"""Bytes that the larger ones may take together; a parsed request, its answer and copies come to it."""


class Decompression:
    """The decompressed requests of a server."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._places = asyncio.Semaphore(max(1, _MEMORY // max_size))

    @asynccontextmanager
    async def decompressed(self, message: bytes) -> AsyncIterator[bytes]:
        """Yield a message as the client meant it; the block is to last as long as it is in use.

        A large one waits until there is room for it.

        Raises:
            StatusError: INTERNAL if it is no gzip, RESOURCE_EXHAUSTED if it is larger than the limit.

        """
        if not message.startswith(_GZIP):
            yield message
            return
        stream = zlib.decompressobj(_GZIP_FORMAT)
        beginning = _decompress(stream, message, _SMALL)
        if stream.eof:
            yield self._checked(stream, beginning)
            return
        async with self._places:
            # Another thread, since 10 MiB take some 20 ms.
            rest = await asyncio.to_thread(
                _decompress, stream, stream.unconsumed_tail, self._max_size + 1 - _SMALL
            )
            yield self._checked(stream, beginning + rest)

    def _checked(self, stream: zlib._Decompress, message: bytes) -> bytes:
        if len(message) > self._max_size:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"Decompressed message larger than max ({self._max_size} bytes)",
            )
        if not stream.eof or stream.unused_data:
            raise _no_gzip()
        return message


def _no_gzip() -> StatusError:
    return StatusError(grpc.StatusCode.INTERNAL, "the request is no complete gzip stream")


def _decompress(stream: zlib._Decompress, data: bytes, limit: int) -> bytes:
    try:
        return stream.decompress(data, limit)
    except zlib.error:
        raise _no_gzip() from None
