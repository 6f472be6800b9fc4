"""Calls whose messages take seconds to arrive or to leave, when their server or their connection ends."""

import asyncio
import json
import math
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import NamedTuple

import grpc
import pytest
import trustme

from grpc_common.testing.certificates import CertificateDirectory

SERVICE = """
import asyncio
import json
import os
import signal

import grpc

from grpc_common import Server, ServerConfig, configure_logging, load
from grpc_common.testing.server import engine_of_tests

PARTS, PART = 48, int(os.environ["PART"])


async def upload(request, _context):
    return str(len(request)).encode()


async def download(_request, _context):
    return bytes(PARTS * PART)


async def join(requests, _context):
    return str(sum([len(request) async for request in requests])).encode()


async def repeat(_request, _context):
    for _ in range(PARTS):
        yield bytes(PART)


async def chat(requests, _context):
    async for request in requests:
        yield request


METHODS = {
    "Upload": grpc.unary_unary_rpc_method_handler(upload),
    "Download": grpc.unary_unary_rpc_method_handler(download),
    "Join": grpc.stream_unary_rpc_method_handler(join),
    "Repeat": grpc.unary_stream_rpc_method_handler(repeat),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}


def add(handler, server):
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Transfer", handler)])


async def serve(name, ports, ended):
    server = Server(load(ServerConfig))
    server.add({name: METHODS[name]}, add)
    async with server.serving() as port:
        ports[name] = port
        if len(ports) == len(METHODS):
            print(json.dumps(ports), flush=True)
        await ended.wait()


async def main():
    configure_logging("error")
    ports, ended = {}, asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await asyncio.gather(*(serve(name, ports, ended) for name in METHODS))


asyncio.run(main(), loop_factory=engine_of_tests())
"""
"""A server for each method, so that no call keeps the server of another one from ending."""

TRANSFERS = ["Upload", "Download", "Join", "Repeat", "Chat"]

PARTS = 48
"""The messages of a stream; a single message is as large as all of them."""


class Case(NamedTuple):
    """What the servers and the network are like."""

    age: str
    """When a connection is too old."""

    part: int
    """Bytes of a message in a stream."""

    rate: float = math.inf
    """Bytes a second that the network carries in each direction of a connection."""

    delay: float = 0
    """Seconds that they take to the other end."""

    tls: bool = False


SLOW = {"part": 131_072, "rate": 3_000_000}
"""2 s for a transfer, of which the kernel takes some 3 MB, and C-core holds the rest."""

LONG = {"part": 3_000, "delay": 0.7}
"""Some 4 s for a transfer of two HTTP/2 windows. Mostly there is nothing in the kernel and the next window
is not open yet, as behind a proxy whose client is slow."""

CASES = {
    "SIGTERM": Case("60s", **SLOW),
    "SIGTERM, TLS": Case("60s", **SLOW, tls=True),
    "SIGTERM, long network": Case("60s", **LONG),
    "connection age": Case("500ms", **SLOW),
    "connection age, TLS": Case("500ms", **SLOW, tls=True),
}


class Network:
    """A network to a server, with a port for clients."""

    def __init__(self, server_port: int, case: Case) -> None:
        self.under_way = asyncio.Event()
        """Set once a good part of a transfer has passed."""
        self._server_port = server_port
        self._case = case

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client to the server until both have said all."""
        loop = asyncio.get_running_loop()
        with socket.socket() as server:
            server.settimeout(0)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or it would hold much itself
            await loop.sock_connect(server, ("127.0.0.1", self._server_port))

            async def to_server(data: bytes) -> None:
                await loop.sock_sendall(server, data) if data else server.shutdown(socket.SHUT_WR)

            async def to_client(data: bytes) -> None:
                writer.write(data) if data else writer.write_eof()
                await writer.drain()

            # Neither end is closed before both have said all: that would lose what is in the kernel here.
            await asyncio.gather(
                self._carry(lambda: reader.read(65_536), to_server),
                self._carry(lambda: loop.sock_recv(server, 65_536), to_client),
            )
        writer.close()

    async def _carry(self, receive, send) -> None:
        """Carry one direction, its end included, be it an orderly one or not."""
        on_the_way = asyncio.Queue()
        loop = asyncio.get_running_loop()
        passed, start, data = 0, loop.time(), b"x"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deliver(on_the_way, send))
            while data:
                try:
                    data = await receive()
                except OSError:
                    data = b""
                on_the_way.put_nowait((loop.time() + self._case.delay, data))
                passed += len(data)
                if passed > PARTS * self._case.part / 8:
                    self.under_way.set()
                start = max(start, loop.time() - passed / self._case.rate - 0.1)  # unused time is no credit
                await asyncio.sleep(start + passed / self._case.rate - loop.time())

    async def _deliver(self, on_the_way: asyncio.Queue, send) -> None:
        loop = asyncio.get_running_loop()
        data = b"x"
        with suppress(OSError):
            while data:
                due, data = await on_the_way.get()
                await asyncio.sleep(due - loop.time())
                await send(data)


@asynccontextmanager
async def network(server_port: int, case: Case):
    """Yield the network of one transfer and the port that its client connects to."""
    carrier = Network(server_port, case)
    server = await asyncio.start_server(carrier.connect, "127.0.0.1", 0, limit=65_536)
    try:
        yield carrier, server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def serving(directory, case: Case, **environ: str):
    """Run the service in a process of its own; yield the process and the port of each method's server."""
    (directory / "service.py").write_text(SERVICE)
    ours = {
        "GRPC_PORT": "0",
        "DRAIN_DELAY": "0s",
        "METRICS_ENABLED": "false",
        "DRAIN_GRACE": "60s",
        "KEEPALIVE_MAX_CONNECTION_AGE": case.age,
        "KEEPALIVE_TIMEOUT": "60s",  # a ping waits behind what the network carries
        "PART": str(case.part),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, directory / "service.py", env=ours | environ, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process, json.loads(await process.stdout.readline())
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def transfer(name: str, port: int, part: int, ca: trustme.CA | None) -> str:
    """Return "whole" if all that a call of the method transfers came, or what happened instead."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.http2.bdp_probe", 0),  # or the window becomes larger than all
        ("grpc.max_receive_message_length", -1),
    ]
    target = f"127.0.0.1:{port}"
    if ca:
        credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
        channel = grpc.aio.secure_channel(target, credentials, options)
    else:
        channel = grpc.aio.insecure_channel(target, options)
    requests = {"Upload": [bytes(PARTS * part)], "Join": [bytes(part)] * PARTS, "Chat": [bytes(part)] * PARTS}
    answers = 0
    try:
        async with channel:
            call = channel.stream_stream(f"/test.Transfer/{name}")
            async for answer in call(iter(requests.get(name, [b""])), timeout=60):
                answers += int(answer) if name in {"Upload", "Join"} else len(answer)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} after {answers} bytes: {error.details()}"
    return "whole" if answers == PARTS * part else f"only {answers} bytes"


async def run(directory, name: str) -> dict[str, object]:
    """Return how each transfer of a case ends, and the exit code of the service."""
    case = CASES[name]
    directory.mkdir()
    ca = trustme.CA() if case.tls else None
    environ = {}
    if ca:
        environ["TLS_DIRECTORY"] = str(CertificateDirectory(directory / "certificates", ca).path)
    async with AsyncExitStack() as stack:
        process, ports = await stack.enter_async_context(serving(directory, case, **environ))
        networks = [await stack.enter_async_context(network(ports[method], case)) for method in TRANSFERS]
        transfers = [
            asyncio.create_task(transfer(method, port, case.part, ca))
            for method, (_, port) in zip(TRANSFERS, networks, strict=True)
        ]
        await asyncio.gather(*(carrier.under_way.wait() for carrier, _ in networks))
        if name.startswith("SIGTERM"):
            process.send_signal(signal.SIGTERM)
        outcomes = dict(zip(TRANSFERS, await asyncio.gather(*transfers), strict=True))
        if not name.startswith("SIGTERM"):
            process.send_signal(signal.SIGTERM)
        await process.communicate()
        return outcomes | {"exit code": process.returncode}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Return what `run` does for each case; all at a time, since they only wait."""
    directory = tmp_path_factory.mktemp("transfers")

    async def run_all() -> list[dict[str, object]]:
        async with asyncio.timeout(120):
            return await asyncio.gather(*(run(directory / case, case) for case in CASES))

    return dict(zip(CASES, asyncio.run(run_all()), strict=True))


@pytest.mark.parametrize(("name", "case"), [(name, case) for case in CASES for name in TRANSFERS])
def test_transfer_is_whole(outcomes, name, case):
    """No call is cut while its request arrives or its answer leaves."""
    assert outcomes[case][name] == "whole"


@pytest.mark.parametrize("case", CASES)
def test_server_ends_well(outcomes, case):
    """What takes long is no reason for another exit code."""
    assert outcomes[case]["exit code"] == 0
