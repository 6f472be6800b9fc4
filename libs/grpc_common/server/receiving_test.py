import asyncio
import gzip

import grpc
import pytest

from grpc_common import StatusError
from grpc_common.server.receiving import OPTIONS, Decompression

MEBIBYTE = 2**20


async def decompress(message: bytes, max_size: int = 10 * MEBIBYTE) -> bytes:
    """Return what a servicer gets."""
    async with Decompression(max_size).decompressed(message) as request:
        return request


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, MEBIBYTE])
async def test_message_arrives_as_it_was(size):
    """Compressed or not, of any size up to the limit."""
    message = b"\x0a" * size
    assert await decompress(message, MEBIBYTE) == message
    assert await decompress(gzip.compress(message), MEBIBYTE) == message


@pytest.mark.parametrize("max_size", [100, 2**16, MEBIBYTE])
async def test_larger_message_than_the_limit_is_refused(max_size):
    """One byte more is RESOURCE_EXHAUSTED."""
    with pytest.raises(StatusError, match="Decompressed message larger than max") as caught:
        await decompress(gzip.compress(bytes(max_size + 1)), max_size)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


WHOLE = gzip.compress(bytes(range(256)) * 1000)


@pytest.mark.parametrize(
    "message",
    [WHOLE[:-1], WHOLE[:100], WHOLE[:3], WHOLE + b"x", WHOLE[:50] + bytes(50) + WHOLE[100:]],
    ids=["no last byte", "half", "magic alone", "more", "damaged"],
)
async def test_damaged_gzip_is_refused(message):
    """What is no gzip is the client's error, not a bug."""
    with pytest.raises(StatusError, match="gzip") as caught:
        await decompress(message)
    assert caught.value.code is grpc.StatusCode.INTERNAL


async def test_few_large_messages_are_there_at_a_time():
    """Of 50 messages of 9 MiB three are decompressed while none is done with; small ones do not wait."""
    decompression = Decompression(10 * MEBIBYTE)
    large, small = gzip.compress(bytes(9 * MEBIBYTE)), gzip.compress(b"small")
    done = asyncio.Event()
    there: list[int] = []
    three = asyncio.Event()

    async def handle() -> None:
        async with decompression.decompressed(large) as message:
            there.append(len(message))
            if len(there) == 3:
                three.set()
            await done.wait()

    calls = [asyncio.create_task(handle()) for _ in range(50)]
    await three.wait()
    async with decompression.decompressed(small) as message:
        assert message == b"small"
    assert len(there) == 3
    done.set()
    await asyncio.gather(*calls)
    assert there == [9 * MEBIBYTE] * 50


async def test_grpc_leaves_messages_as_they_are():
    """With the options a method gets gzip as it was sent, and deflate is UNIMPLEMENTED."""
    server = grpc.aio.server(options=OPTIONS)

    async def echo(request, _context):
        return request

    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Methods", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test.Methods/Echo")
        message = bytes(1000)
        assert await decompress(await call(message, compression=grpc.Compression.Gzip)) == message
        assert await call(message) == message
        with pytest.raises(grpc.aio.AioRpcError, match="'deflate' is disabled"):
            await call(message, compression=grpc.Compression.Deflate)
    await server.stop(None)
