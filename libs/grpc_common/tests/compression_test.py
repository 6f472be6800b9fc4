"""server.compression and server.channel_args, on the wire."""

import asyncio
import gzip
import zlib

import grpc
import pytest
import yaml

from grpc_common import ServerConfig, load
from grpc_common.server.options import options
from grpc_common.testing.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, HELLO, frame, message, request
from grpc_common.testing.server import serving, serving_handlers

PART = bytes(20_000)
"""Two of these fit into HTTP/2's first window as they are."""

READ = {0: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}


async def unary(_request: bytes, _context) -> bytes:
    """Answer with a message."""
    return PART


async def stream(_request: bytes, _context):
    """Answer with two messages."""
    yield PART
    yield PART


async def plain(_request: bytes, context) -> bytes:
    """Answer with a message that is sent as it is."""
    context.disable_next_message_compression()
    return PART


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Stream": grpc.unary_stream_rpc_method_handler(stream),
    "Plain": grpc.unary_unary_rpc_method_handler(plain),
}


async def messages(port: int, method: str, accepted: str | None) -> list[tuple[int, bytes]]:
    """Return the messages of a call as they are on the wire: the flag of compression, and the bytes."""
    more = {} if accepted is None else {"grpc_accept_encoding": accepted}
    headers = frame(HEADERS, 1, request(f"/test.Methods/{method}", **more), flags=END_HEADERS)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HELLO + headers + message(b"") + frame(DATA, 1, flags=END_STREAM))
    body, flags = b"", 0
    async with asyncio.timeout(10):
        while not flags & END_STREAM:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            kind, number = head[3], int.from_bytes(head[5:])
            flags = head[4] if number == 1 and kind in (DATA, HEADERS) else 0
            if number == 1 and kind == DATA:
                body += payload
    writer.close()
    return list(split(body))


def split(body: bytes):
    """Yield the messages of a body."""
    while body:
        size = int.from_bytes(body[1:5])
        yield body[0], body[5 : 5 + size]
        body = body[5 + size :]


@pytest.mark.parametrize(
    ("compression", "accepted", "expected"),
    [
        ("gzip", "identity, deflate, gzip", "gzip"),
        ("deflate", "identity, deflate, gzip", "deflate"),
        ("gzip", "gzip", "gzip"),
        ("gzip", "deflate", "deflate"),
        ("deflate", "gzip", "gzip"),
        ("gzip", "identity", None),
        ("gzip", "br", None),
        ("gzip", None, None),
        ("deflate", None, None),
        ("none", "identity, deflate, gzip", None),
    ],
)
@pytest.mark.parametrize(("method", "count"), [("Unary", 1), ("Stream", 2)])
async def test_responses_are_compressed_for_those_who_take_it(method, count, compression, accepted, expected):
    """A client gets what it says that it can read, and all others get the messages as they are."""
    async with serving(METHODS, COMPRESSION=compression) as (port, _):
        sent = await messages(port, method, accepted)
    assert len(sent) == count
    for flag, payload in sent:
        assert flag == (expected is not None)
        assert READ[expected or 0](payload) == PART
        assert len(payload) < 1000 or not expected


async def test_handler_sends_a_message_as_it_is():
    """A servicer that says so has its response not compressed, whatever the setting."""
    async with serving(METHODS, COMPRESSION="gzip") as (port, _):
        assert await messages(port, "Plain", "gzip") == [(0, PART)]


async def choose(_request: bytes, context) -> bytes:
    """Ask for no compression."""
    context.set_compression(grpc.Compression.NoCompression)
    return PART


async def test_compressed_calls_are_read_by_grpc():
    """A client of gRPC gets its messages with either setting, large ones and after set_compression too."""
    handlers = METHODS | {"Choose": grpc.unary_unary_rpc_method_handler(choose)}
    for compression in ("gzip", "deflate"):
        async with serving_handlers(handlers, COMPRESSION=compression) as channel:
            for method in ("Unary", "Plain", "Choose"):
                assert await channel.unary_unary(f"/test.Methods/{method}")(b"", timeout=10) == PART
            call = channel.unary_stream("/test.Methods/Stream")(b"", timeout=10)
            assert [part async for part in call] == [PART, PART]


def configured(folder, arguments: dict) -> ServerConfig:
    """Return the configuration of a file with these channel arguments."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"server": {"channel_args": arguments}}))
    return load(ServerConfig, file, environ={})


def test_channel_arguments_win(tmp_path):
    """They stand in the place of what the library sets: of two C-core would take the first."""
    arguments = {"grpc.http2.bdp_probe": 1, "grpc.optimization_target": "throughput"}
    all_options = options(configured(tmp_path, arguments).server)
    assert len(dict(all_options)) == len(all_options)
    assert dict(all_options).items() >= arguments.items()
