import asyncio
import os
import resource
import select
import socket
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common import Server, loop_factory
from grpc_common.core import sockets
from grpc_common.core.ports import Address
from grpc_common.server import drain
from grpc_common.server.drain import close_listeners
from grpc_common.testing import configure
from grpc_common.testing.http2 import ACK, CALL, DATA, END_STREAM, HELLO, PING, frame, message
from grpc_common.testing.server import serving

LISTENERS = [
    (socket.AF_INET, "127.0.0.1", False),
    (socket.AF_INET6, "::1", False),
    (socket.AF_INET6, "127.0.0.1", True),
]


@contextmanager
def listening(family: int, *, both: bool):
    """Listen on a free port."""
    address = "127.0.0.1" if family == socket.AF_INET else "::" if both else "::1"
    with socket.create_server((address, 0), family=family, dualstack_ipv6=both) as listener:
        yield listener, listener.getsockname()[1]


@pytest.fixture(params=["listed", "no list", "list is forbidden"])
def _descriptors(request, monkeypatch, tmp_path):
    """Have a system that lists descriptors, one without /proc, and one whose list is not ours to read."""
    if request.param == "no list":
        monkeypatch.setattr(drain, "_DESCRIPTORS", tmp_path / "missing")
    if request.param == "list is forbidden":
        (tmp_path / "file").touch()  # an OSError for root, too
        monkeypatch.setattr(drain, "_DESCRIPTORS", tmp_path / "file")


@pytest.mark.usefixtures("_descriptors")
@pytest.mark.parametrize(("family", "address", "both"), LISTENERS, ids=["IPv4", "IPv6", "both"])
def test_closed_port_refuses_and_its_connections_stay(family, address, both):
    """Nobody connects any more, and whoever has is served on."""
    with (
        listening(family, both=both) as (listener, port),
        socket.create_connection((address, port)) as client,
        listener.accept()[0] as server,
    ):
        close_listeners(Address(port=port))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port))
        server.sendall(b"hello")
        assert client.recv(5) == b"hello"


@pytest.mark.usefixtures("_descriptors")
def test_other_descriptors_are_left_alone():
    """Listeners of other ports and of Unix sockets, UDP on the same port, pipes and the like stay open."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("127.0.0.1", port))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0grpc-common-{port}")
        unix.listen()
        stack.enter_context(select.epoll())
        pipes = [stack.enter_context(os.fdopen(end, "rb")) for _ in range(100) for end in os.pipe()]
        before = [os.fstat(entry.fileno()).st_ino for entry in (other, datagrams, unix, *pipes)]
        close_listeners(Address(port=port))
        assert [os.fstat(entry.fileno()).st_ino for entry in (other, datagrams, unix, *pipes)] == before
        with socket.create_connection(other.getsockname()):
            pass


def test_same_port_of_another_address_is_left_alone():
    """Servers on two addresses of one machine may have one port, and end one after the other."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("127.0.0.2", listener.getsockname()[1])) as other,
    ):
        address = listener.getsockname()
        close_listeners(Address(*address))
        with socket.create_connection(other.getsockname()), pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_port_is_closed_without_a_descriptor_to_spare():
    """A process that has as many connections as it may have can end all the same."""
    with listening(socket.AF_INET, both=False) as (_, port):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        next_one = os.dup(0)
        os.close(next_one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(0)
            close_listeners(Address(port=port))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


class Gate:
    """A servicer of one method that answers once the gate is open."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()

    async def wait(self, request: bytes, _context) -> bytes:
        """Answer with the request."""
        self.entered.set()
        await self.opened.wait()
        return request

    def add(self, _servicer, server) -> None:
        """Register test.Gate."""
        handlers = {"Wait": grpc.unary_unary_rpc_method_handler(self.wait)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Gate", handlers)])

    async def open_once_closed(self, port: int) -> None:
        """Open as soon as the port takes no connection any more."""
        async with asyncio.timeout(30):
            while await accepts(port):
                await asyncio.sleep(0.01)
        self.opened.set()


async def accepts(port: int) -> bool:
    """Return whether a port takes a connection."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def answer_across_a_drain(gate: Gate, **variables: str) -> bytes:
    """Have a server drain while a call is in flight, and return its answer."""
    server = Server(configure(DRAIN_GRACE="40s", **variables))
    server.add(gate, gate.add)
    async with server.serving() as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        call = channel.unary_unary("/test.Gate/Wait")(b"hello", timeout=30)
        await gate.entered.wait()
        opening = asyncio.create_task(gate.open_once_closed(port))
    async with channel:
        await opening
        return await call


async def test_drain_makes_c_core_log_nothing(capfd):
    """C-core's own lines, which are not in the form of the log, mean something again."""
    assert await answer_across_a_drain(Gate()) == b"hello"
    assert "accept4" not in capfd.readouterr().err


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "localhost", "::ffff:127.0.0.1"])  # noqa: S104
async def test_port_is_closed_whatever_host_stands_for(host):
    """A server that listens on several addresses takes connections on none of them."""
    assert await answer_across_a_drain(Gate(), GRPC_HOST=host) == b"hello"


async def test_drain_without_proc_is_in_order(monkeypatch, tmp_path):
    """Where nothing tells of descriptors and connections, as on macOS, the port closes and calls finish."""
    monkeypatch.setattr(drain, "_DESCRIPTORS", tmp_path / "missing")
    monkeypatch.setattr(sockets, "_TABLES", (tmp_path / "missing",))
    monkeypatch.delattr(sockets.socket, "AF_NETLINK")
    assert await answer_across_a_drain(Gate()) == b"hello"


async def test_port_that_can_not_be_closed_does_not_keep_the_server(monkeypatch):
    """The call finishes and the server stops, though the port takes connections until then."""
    gate = Gate()

    def refuse(*_args, **_options) -> None:
        gate.opened.set()
        raise PermissionError

    monkeypatch.setattr(drain, "_close", refuse)
    assert await answer_across_a_drain(gate) == b"hello"


async def test_server_stops_whatever_fails_in_its_drain(monkeypatch):
    """An unforeseen error comes out of the drain, and leaves no server behind."""
    monkeypatch.setattr(drain, "close_listeners", lambda _address: 1 / 0)
    server = Server(configure(DRAIN_GRACE="40s"))
    with pytest.raises(ZeroDivisionError):
        async with server.serving() as port:
            assert await accepts(port)
    assert not await accepts(port)


async def test_grace_that_ends_before_a_client_has_read_is_told():
    """No call outlasts it then, and the log must not say so."""
    # pytest's own folder may have too long a name for a socket.
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as silent:
        config = configure(DRAIN_GRACE="0.5s", server={"listen": [{"address": f"unix:{folder}/s"}]})
        with capture_logs() as lines:
            async with Server(config).serving():
                silent.connect(f"{folder}/s")
                silent.sendall(HELLO)
                while not select.select([silent], [], [], 0)[0]:
                    await asyncio.sleep(0.01)
    warnings = [line["event"] for line in lines if line["log_level"] == "warning"]
    # A busy machine may hold up the event loop, which the log tells.
    assert [event for event in warnings if not event.startswith("event loop")] == [
        "the grace ends before clients have read all that was sent"
    ]


RESPONSE = b"x" * 50_000
"""It fits into HTTP/2's first window, and into what a kernel keeps for a process that does not read."""

LATE = 2.0
"""Seconds. A server that waits for nobody has ended long before."""

PATIENCE = 10.0
"""Seconds: enough for a busy machine, and less than the grace, after which a server ends by itself."""

PING_SIZE = 8
PING_HEADER = frame(PING, payload=bytes(PING_SIZE))[:-PING_SIZE]

CLOSE_WAIT = 8
"""TCP_CLOSE_WAIT of include/net/tcp_states.h: the other side has said its last."""


async def respond(_request: bytes, _context) -> bytes:
    """Answer with a large message."""
    return RESPONSE


async def ended(client: socket.socket) -> None:
    """Wait until the server has ended a connection."""
    while client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != CLOSE_WAIT:
        await asyncio.sleep(0.01)


async def rest_of_a_response(client: socket.socket) -> bytes:
    """Read nothing for a while, in which the connection does not end, then all; a PING comes last."""
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ended(client), LATE)
    read = b""
    while len(read.rpartition(PING_HEADER)[2]) < PING_SIZE or PING_HEADER not in read:
        read += await loop.sock_recv(client, 2**16)
    payload = read.rpartition(PING_HEADER)[2][:PING_SIZE]
    await loop.sock_sendall(client, frame(PING, payload=payload, flags=ACK))
    await asyncio.wait_for(ended(client), PATIENCE)
    return read


def data_of(read: bytes) -> bytes:
    """Return what the DATA frames of a connection hold; a PING has bytes by chance."""
    data = b""
    while read:
        size, kind = int.from_bytes(read[:3]), read[3]
        if kind == DATA:
            data += read[9 : 9 + size]
        read = read[9 + size :]
    return data


async def read_across_a_stop(engine: str) -> bytes:
    """Have a server stop while a client has read a part of a response, and return all that it reads."""
    handler = grpc.unary_unary_rpc_method_handler(respond)
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.settimeout(0)
        async with serving({"Echo": handler}, DRAIN_GRACE="20s", ENGINE=engine) as (port, _):
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, CALL + message(b"") + frame(DATA, 1, flags=END_STREAM))
            read = b""
            while b"x" not in read:
                read += await loop.sock_recv(client, 1000)
            reading = asyncio.create_task(rest_of_a_response(client))
        async with asyncio.timeout(30):
            return read + await reading


@pytest.mark.parametrize("engine", ["completion-queue", "grpc-aio"])
def test_client_that_is_late_to_read_gets_all(engine):
    """As a proxy is whose own client is slow: nginx loses a response if the connection ends behind a PING."""
    read = asyncio.run(read_across_a_stop(engine), loop_factory=loop_factory(engine))
    assert data_of(read)[5:] == RESPONSE  # behind the prefix of a message
