"""Ports for programs that can't say which free one they took, or that come back to theirs."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """Yield a port of 127.0.0.1 that nobody else is given, whether a program listens there or not.

    Servers set SO_REUSEADDR, and so may listen on a port that somebody with SO_REUSEADDR has bound.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
