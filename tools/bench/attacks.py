"""Attacks on the user service, each from peers of its own in a process that is not the honest client's."""

import functools
import multiprocessing
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from grpc_common.testing.floods import Flood, floods, send, swelling, unacknowledged
from grpc_common.testing.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    HELLO,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    request,
)

_GET_USER = "/user.UserService/GetUser"
_LIST_USERS = "/user.UserService/ListUsers"

_CONNECTIONS = 700
"""More than the 500 that base's max_connections allows."""

_HALF_OPEN = 300
"""Fewer: these are to be held, not refused."""

_READERS = 20
_LARGEST_WINDOW = 2**31 - 1 - 2**16
_ANSWERS = 100
"""As many calls as a connection takes at a time."""

_PAUSE = 0.05
"""Seconds after which what the server has closed is opened again."""

type _Attack = Callable[[int, float], None]
"""Plays it on a port of this machine for so many seconds, and lets go of all connections."""


def _flood(flood: Flood, port: int, seconds: float) -> None:
    end = time.monotonic() + seconds

    def repeat() -> None:
        while True:
            with suppress(OSError):
                send(port, flood.sent)
            if time.monotonic() > end:
                return

    threads = [threading.Thread(target=repeat) for _ in range(flood.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _hold(count: int, sent: bytes, receive_buffer: int | None, port: int, seconds: float) -> None:
    """Keep `count` connections that say `sent` and read nothing, and replace those that are closed."""
    end = time.monotonic() + seconds
    held: list[socket.socket] = []
    while time.monotonic() < end:
        held = [connection for connection in held if _is_open(connection, reads=receive_buffer is None)]
        with suppress(OSError):
            held += [_connect(port, sent, receive_buffer) for _ in range(count - len(held))]
        time.sleep(_PAUSE)
    for connection in held:
        connection.close()


def _connect(port: int, sent: bytes, receive_buffer: int | None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(1)
    try:
        connection.connect(("127.0.0.1", port))
        connection.sendall(sent)
    except OSError:
        connection.close()
        raise
    connection.settimeout(0)
    return connection


def _is_open(connection: socket.socket, *, reads: bool) -> bool:
    """Return whether the server has left it open; close it if not."""
    try:
        if connection.recv(2**16 if reads else 1, 0 if reads else socket.MSG_PEEK):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    connection.close()
    return False


def _unread() -> bytes:
    """Return calls for as much as a connection takes, with room for all answers."""
    windows = frame(SETTINGS, payload=b"\0\4" + _LARGEST_WINDOW.to_bytes(4))
    calls = b"".join(
        frame(HEADERS, stream, request(_LIST_USERS), flags=END_HEADERS)
        + frame(DATA, stream, bytes(5), flags=END_STREAM)
        for stream in range(1, 2 * _ANSWERS, 2)
    )
    return HELLO + windows + frame(WINDOW_UPDATE, payload=_LARGEST_WINDOW.to_bytes(4)) + calls


def _all() -> dict[str, _Attack]:
    fast = floods(_GET_USER) | swelling(_GET_USER) | unacknowledged(_GET_USER)
    slow = {
        "handshakes that never begin": (_HALF_OPEN, b"", None),
        "half a preface": (_HALF_OPEN, HELLO[:10], None),
        "no SETTINGS": (_HALF_OPEN, HELLO[:24], None),
        "answers that nobody reads": (_READERS, _unread(), 4096),
        "more connections than allowed": (_CONNECTIONS, HELLO, None),
    }
    return {
        **{name: functools.partial(_flood, flood) for name, flood in fast.items()},
        **{name: functools.partial(_hold, *what) for name, what in slow.items()},
    }


class Peers:
    """The process that attacks come from."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self.names: list[str] = line.recv()
        """The attacks that it knows."""

    def play(self, name: str, port: int, seconds: float) -> None:
        """Play an attack to its end, which may be seconds later: a flood is finished."""
        self._line.send((name, port, seconds))
        self._line.recv()


@contextmanager
def peers() -> Iterator[Peers]:
    """Run the process until the block ends."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Peers(ours)
    finally:
        process.kill()
        process.join()


def _serve(line: Connection) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attacks = _all()
    line.send(list(attacks))
    with suppress(EOFError):
        while True:
            name, port, seconds = line.recv()
            attacks[name](port, seconds)
            line.send(None)
