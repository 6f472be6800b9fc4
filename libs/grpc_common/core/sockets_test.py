import socket
from contextlib import contextmanager

import pytest

from grpc_common.core import sockets
from grpc_common.core.ports import Address
from grpc_common.core.sockets import End, Sending, SendQueues, connections


@contextmanager
def connected(listener, address):
    """Yield the port that listens and both ends of one connection to it."""
    with listener:
        port = listener.getsockname()[1]
        with socket.create_connection((address, port)) as client, listener.accept()[0] as server:
            yield port, server, client


def fill(server: socket.socket) -> int:
    """Write until the kernel takes no more, and return how many bytes it took."""
    server.settimeout(0)
    written = 0
    with pytest.raises(BlockingIOError):
        while True:
            written += server.send(bytes(100_000))
    return written


LISTENERS = [
    (lambda: socket.create_server(("127.0.0.1", 0)), "127.0.0.1"),
    (lambda: socket.create_server(("::1", 0), family=socket.AF_INET6), "::1"),
    (lambda: socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True), "127.0.0.1"),
]


SEVERAL = ["", "localhost", "0.0.0.0", "::"]  # noqa: S104 (nothing is bound)
HOSTS = ["127.0.0.1", "127.0.0.2", "::1", "::2", "fe80::1%1", *SEVERAL]


@pytest.mark.parametrize(("listen", "address"), LISTENERS, ids=["IPv4", "IPv6", "IPv4 to a port for both"])
def test_connection_is_listed_while_it_is_open(listen, address):
    """A connection is there once, from the server's end, until it is closed."""
    with connected(listen(), address) as (port, _server, _client):
        assert [connection.unsent for connection in connections(port)] == [0]
    assert connections(port) == []


@pytest.mark.parametrize(("listen", "address"), LISTENERS, ids=["IPv4", "IPv6", "IPv4 to a port for both"])
def test_address_has_its_own_connections(listen, address):
    """Connections of an address are not those of another one with the same port; some stand for several."""
    with connected(listen(), address) as (port, _server, _client):
        counts = {host: len(connections(Address(host, port))) for host in HOSTS}
    assert counts == {host: int(host in {address, *SEVERAL}) for host in HOSTS}


def test_listener_is_no_connection():
    """A port that nobody has connected to has none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert connections(listener.getsockname()[1]) == []


def test_bytes_that_the_client_does_not_take_are_unsent():
    """What waits in the send queue for a client that does not read is counted, and gone once it has read."""
    with connected(socket.create_server(("127.0.0.1", 0)), "127.0.0.1") as (port, server, client):
        written = fill(server)
        assert 0 < connections(port)[0].unsent <= written
        client.recv(written, socket.MSG_WAITALL)
        assert connections(port)[0].unsent == 0


def test_bytes_that_the_server_has_not_taken_are_unread():
    """What has arrived counts until the server reads it."""
    with connected(socket.create_server(("127.0.0.1", 0)), "127.0.0.1") as (port, server, client):
        client.sendall(b"hello")
        server.recv(5, socket.MSG_PEEK)  # waits until they are there
        assert connections(port)[0].unread == 5
        server.recv(5)
        assert connections(port)[0].unread == 0


@pytest.mark.parametrize(
    ("peer", "address", "port"),
    [
        ("ipv4:127.0.0.1:41234", "127.0.0.1", 41234),
        ("ipv6:[::1]:5", "::1", 5),
        ("ipv6:%5B::1%5D:5", "::1", 5),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5", "127.0.0.1", 5),
        ("ipv6:%5Bfe80::1%252%5D:5", "fe80::1%2", 5),
    ],
)
def test_peer_is_an_end_of_a_connection(peer, address, port):
    """Each form that gRPC writes an address in is understood, and ::ffff:127.0.0.1 is an IPv4 address."""
    end = End.of_peer(peer)
    assert (str(end.address), end.port) == (address, port)


@pytest.mark.parametrize(
    "peer", ["unix:", "unix:/run/x.sock", "unix-abstract:x:5", "ipv4:x:5", "ipv4:127.0.0.1", ""]
)
def test_peer_that_is_no_tcp_connection_is_no_end(peer):
    """What has no address and port is not taken for one that has."""
    assert End.of_peer(peer) is None


def test_number_of_the_interface_belongs_to_a_link_local_address():
    """An interface is told by name or number."""
    name = socket.if_indextoname(1)
    assert [End.of_peer(f"ipv6:%5Bfe80::1%25{scope}%5D:5").interface for scope in (name, 1)] == [1, 1]


def end_of(client: socket.socket) -> End:
    """Return the end that `client` is for the server."""
    host, port, *_ = client.getsockname()
    return End.of_peer(f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}")


@pytest.mark.parametrize(("listen", "address"), LISTENERS, ids=["IPv4", "IPv6", "IPv4 to a port for both"])
def test_send_queue_is_of_one_connection(listen, address):
    """What one client does not read is unsent for it, until it has read it, and for no other."""
    queues = SendQueues()
    with connected(listen(), address) as (port, server, client):
        with socket.create_connection((address, port)) as other:
            written = fill(server)
            filled = queues.look(end_of(client))
            assert (filled.sent + filled.unsent, filled.unsent > 0) == (written, True)
            assert queues.look(end_of(other)) == Sending(0, 0)
        client.recv(written, socket.MSG_WAITALL)
        assert queues.look(end_of(client)) == Sending(written, 0)


def test_send_queue_of_a_client_that_has_said_all_is_found():
    """A client that has closed its half of the connection still gets ours."""
    with connected(socket.create_server(("127.0.0.1", 0)), "127.0.0.1") as (_port, server, client):
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        assert SendQueues().look(end_of(client)) == Sending(0, 0)


def test_nobody_connected_has_no_send_queue():
    """An address that no connection goes to is told from one that has got all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert SendQueues().look(end_of(listener)) is None


def test_second_client_of_a_server_is_found_without_a_walk(monkeypatch):
    """The kernel walks through all connections once for an address of the server, not for each client."""
    queues = SendQueues()
    with connected(socket.create_server(("127.0.0.1", 0)), "127.0.0.1") as (port, _server, client):
        assert queues.look(end_of(client)) == Sending(0, 0)
        monkeypatch.delattr(sockets, "_ALL")
        with socket.create_connection(("127.0.0.1", port)) as second:
            assert queues.look(end_of(second)) == Sending(0, 0)


@pytest.mark.parametrize("error", [AttributeError, PermissionError, BlockingIOError])
def test_kernel_that_can_not_be_asked_tells_nothing(monkeypatch, error):
    """Neither another system nor a forbidden netlink is an error."""

    def refuse(*_args) -> None:
        raise error

    with connected(socket.create_server(("127.0.0.1", 0)), "127.0.0.1") as (_port, _server, client):
        end = end_of(client)
        monkeypatch.setattr(sockets.socket, "socket", refuse)
        assert SendQueues().look(end) is None


def test_look_that_failed_spoils_no_other(monkeypatch):
    """An answer that was not read is not taken for that to the next question."""

    def fail(*_args) -> None:
        raise OSError

    queues = SendQueues()
    with connected(socket.create_server(("127.0.0.1", 0)), "127.0.0.1") as (port, server, client):
        fill(server)
        assert queues.look(end_of(client)).unsent
        with monkeypatch.context() as patch:
            patch.setattr(sockets, "_answers", fail)
            assert queues.look(end_of(client)) is None
        with socket.create_connection(("127.0.0.1", port)) as other:
            assert queues.look(end_of(other)) == Sending(0, 0)


def test_old_kernel_tells_less():
    """Before 4.19 the struct ends behind what is unsent."""
    assert Sending.from_tcp_info(bytes(144) + (5).to_bytes(4, "little")) == Sending(0, 5)
