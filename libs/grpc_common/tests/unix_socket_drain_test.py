"""Responses on a server's Unix socket when the server ends."""

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import yaml

from grpc_common import Server, ServerConfig, load

LARGE = 8 * 2**20


def configured(folder: Path) -> ServerConfig:
    """Return the configuration of a server with the Unix socket `s`; its file stays in the folder."""
    file = folder / "config.yaml"
    drain = {"delay": "0s", "grace": "20s"}
    section = {
        "port": 0,
        "host": "127.0.0.1",
        "drain": drain,
        "listen": [{"address": f"unix:{folder}/s"}],
    }
    file.write_text(yaml.safe_dump({"server": section, "metrics": {"enabled": False}}))
    return load(ServerConfig, file, environ={})


@pytest.fixture
def tmp_path():
    """Return a folder in place of pytest's, whose name is too long for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


SERVICE = """
import asyncio
import sys
from pathlib import Path

import grpc

from grpc_common import Server, ServerConfig, load
from grpc_common.testing.server import engine_of_tests


async def large(_request, _context):
    return bytes(8 * 2**20)


async def stream(_request, _context):
    for _ in range(80):
        yield bytes(100_000)


def add(_servicer, server):
    handlers = {
        "Large": grpc.unary_unary_rpc_method_handler(large),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])


async def main():
    server = Server(load(ServerConfig, Path(sys.argv[1])))
    server.add(None, add)
    return await server.run()

asyncio.run(main(), loop_factory=engine_of_tests())
"""


class SlowNetwork:
    """Carries 4 MB a second from a Unix socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.under_way = asyncio.Event()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection."""
        server_reader, server_writer = await asyncio.open_unix_connection(self.path)
        await asyncio.gather(self._carry(reader, server_writer), self._carry(server_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) / 4_000_000)
                if len(data) > 10_000:
                    self.under_way.set()
        writer.close()


async def receive(channel: grpc.aio.Channel, method: str) -> int:
    """Return how many bytes the answer to a call has."""
    if method == "Large":
        return len(await channel.unary_unary("/test.Echo/Large")(b"", timeout=30))
    call = channel.unary_stream("/test.Echo/Stream")(b"80", timeout=30)
    return sum([len(message) async for message in call])


@pytest.mark.parametrize("method", ["Large", "Stream"])
async def test_large_response_over_a_unix_socket_survives_sigterm(tmp_path, method):
    """A client that reads slowly gets 8 MB and the status, though the server is told to end meanwhile."""
    path, ours = tmp_path / "s", tmp_path / "ours"
    configured(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVICE, str(tmp_path / "config.yaml"))
    )
    network = SlowNetwork(path)
    options = [("grpc.max_receive_message_length", -1)]
    try:
        async with (
            asyncio.timeout(60),
            await asyncio.start_unix_server(network.connected, ours),
            grpc.aio.insecure_channel(f"unix:{ours}", options=options) as channel,
        ):
            while not path.exists():
                await asyncio.sleep(0.02)
            receiving = asyncio.create_task(receive(channel, method))
            await network.under_way.wait()
            process.send_signal(signal.SIGTERM)
            assert await receiving == (LARGE if method == "Large" else 80 * 100_000)
            assert await process.wait() == 0
            assert not path.exists()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


CLIENT = """
import asyncio
import sys

import grpc


async def main():
    async with grpc.aio.insecure_channel(f"unix:{sys.argv[1]}") as channel:
        call = channel.unary_stream("/test.Stopped/Stream")(b"", timeout=60)
        print(sum([len(message) async for message in call]), (await call.code()).name)


asyncio.run(main())
"""


async def test_client_that_stands_still_finds_all_in_its_unix_socket(tmp_path):
    """A server does not end while a client has not read the messages and the status in its Unix socket."""
    path = tmp_path / "s"
    answered = asyncio.Event()

    async def stop_and_stream(_request: bytes, _context):
        os.kill(client.pid, signal.SIGSTOP)
        # Until then a thread of it may read on.
        await asyncio.to_thread(os.waitid, os.P_PID, client.pid, os.WSTOPPED | os.WNOWAIT)
        for _ in range(6):  # what fits into HTTP/2's first window
            yield bytes(10_000)
        answered.set()

    def add_stopped(_servicer, server) -> None:
        handlers = {"Stream": grpc.unary_stream_rpc_method_handler(stop_and_stream)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Stopped", handlers)])

    server = Server(configured(tmp_path))
    server.add(None, add_stopped)
    loop = asyncio.get_running_loop()
    async with server.serving():
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLIENT, str(path)), stdout=asyncio.subprocess.PIPE
        )
        await asyncio.wait_for(answered.wait(), 30)
        goes_on = loop.time() + 2  # a server that does not wait is at its end after 1.2 s
        loop.call_at(goes_on, os.kill, client.pid, signal.SIGCONT)
    assert loop.time() > goes_on
    assert (await client.communicate())[0] == b"60000 OK\n"
