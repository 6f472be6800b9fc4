"""Ports for programs that can't say which free one they took, or that come back to theirs."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port(address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Yield a port of an IPv4 address that nobody else is given, whether a program listens there or not.

    Servers set SO_REUSEADDR, and so may listen on a port that somebody with SO_REUSEADDR has bound.

    Args:
        address: one of this machine's.
        port: the one to hold; 0 takes a free one.

    Raises:
        OSError: the port is somebody else's.

    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((address, port))
        yield holder.getsockname()[1]
