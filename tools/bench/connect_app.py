"""What connect-python serves: an ASGI application, which its server imports by name."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import ConnectASGIApplication, Endpoint

from tools.bench.ways import SERVICE, STREAM_MESSAGES

_handled = itertools.count()


class _Raw:
    """Messages are bytes, as they are for the other servers."""

    def name(self) -> str:
        return "proto"

    def encode(self, message: bytes) -> bytes:
        return message

    def decode(self, data: bytes | bytearray, _message_class: object) -> bytes:
        return bytes(data)


async def _echo(request: bytes, _context: object) -> bytes:
    next(_handled)
    return request


async def _stream(request: bytes, _context: object) -> AsyncIterator[bytes]:
    for _ in range(STREAM_MESSAGES):
        next(_handled)
        yield request


async def _count(_request: bytes, _context: object) -> bytes:
    return b"%d" % next(_handled)


def _method(name: str, kind: StreamType) -> Any:
    return MethodInfo(
        name=name,
        service_name=SERVICE,
        input=bytes,
        output=bytes,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )


class _Application(ConnectASGIApplication[Any]):
    @property
    def path(self) -> str:
        return f"/{SERVICE}"


def _endpoints(_service: object) -> dict[str, Any]:
    unary = {"Echo": _echo, "Handled": _count}
    stream = _method("Stream", StreamType.SERVER_STREAM)
    return {
        f"/{SERVICE}/{name}": Endpoint.unary(_method(name, StreamType.UNARY), function)
        for name, function in unary.items()
    } | {f"/{SERVICE}/Stream": Endpoint.server_stream(stream, _stream)}


# Compression is off, as it is for the others; there is nothing to observe the calls.
app = _Application(service=object(), endpoints=_endpoints, compressions=(), codecs=[_Raw()])
