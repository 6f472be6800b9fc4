import socket
from contextlib import contextmanager

import pytest

from grpc_common.core.sockets import connections


@contextmanager
def connected(listener, address):
    """Yield the port that listens and both ends of one connection to it."""
    with listener:
        port = listener.getsockname()[1]
        with socket.create_connection((address, port)) as client, listener.accept()[0] as server:
            yield port, server, client


LISTENERS = [
    (lambda: socket.create_server(("127.0.0.1", 0)), "127.0.0.1"),
    (lambda: socket.create_server(("::1", 0), family=socket.AF_INET6), "::1"),
    (lambda: socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True), "127.0.0.1"),
]


@pytest.mark.parametrize(("listen", "address"), LISTENERS, ids=["IPv4", "IPv6", "IPv4 to a port for both"])
def test_connection_is_listed_while_it_is_open(listen, address):
    """A connection is there once, from the server's end, until it is closed."""
    with connected(listen(), address) as (port, _server, _client):
        assert [connection.unsent for connection in connections(port)] == [0]
    assert connections(port) == []


def test_listener_is_no_connection():
    """A port that nobody has connected to has none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert connections(listener.getsockname()[1]) == []


def test_bytes_that_the_client_does_not_take_are_unsent():
    """What waits in the send queue for a client that does not read is counted, and gone once it has read."""
    with connected(socket.create_server(("127.0.0.1", 0)), "127.0.0.1") as (port, server, client):
        server.settimeout(0)
        written = 0
        with pytest.raises(BlockingIOError):
            while True:
                written += server.send(bytes(100_000))
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
