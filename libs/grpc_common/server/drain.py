"""The end of a server without a failed call.

grpc.aio's `Server.stop` cancels the calls that have just arrived, the calls that go on arriving until
clients have its GOAWAY, and whatever a client has not read when its connection is closed. So a
server stops only once nobody calls it any more: its listeners take no new connections, balancing
clients have left because health says NOT_SERVING, and the others leave when their connection
reaches max_connection_age, whose GOAWAY loses nothing.
"""

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from grpc_common.core.ports import Address
from grpc_common.core.sockets import connections
from grpc_common.server.admission import Admission

log = structlog.get_logger()

_LOOKS = 5
_INTERVAL = 0.025
"""Seconds between two looks. If so many in a row see no call, which is a hundred round trips in a cluster,
no more will come. Looks are counted rather than seconds: these pass even if the process is too busy to see
the calls that C-core has taken from the kernel already, which neither the table nor Python knows of."""

_DESCRIPTORS = Path("/dev/fd")
"""The descriptors of this process, on Linux (through /proc) and on macOS."""

_UNREAD = termios.FIONREAD
_UNREAD_BY_PEER = termios.TIOCOUTQ
"""SIOCINQ and SIOCOUTQ of unix(7)."""

_MANY = 65_536
"""How many descriptors are tried where there is no list of them. A server opens its port early, when few are
taken. Each costs 1 µs."""


async def quiet(admission: Admission, *listeners: Address | str) -> None:
    """Wait until no call is in flight, none arrives any more, and clients have all responses.

    A Unix socket is the path that it was bound to. Where the system tells nothing of its
    connections, as macOS, calls and arrivals are all that is looked at.
    """
    quiet_looks = 0
    while quiet_looks < _LOOKS:
        arrivals = admission.arrivals
        await asyncio.sleep(_INTERVAL)
        is_quiet = admission.arrivals == arrivals and not admission.in_flight and not has_traffic(*listeners)
        quiet_looks = quiet_looks + 1 if is_quiet else 0


def has_traffic(*listeners: Address | str) -> bool:
    """Return whether connections of `listeners` have bytes that one side has not read.

    A client with unread bytes in a Unix socket loses them if it writes first, as for a PING, once the server
    has closed it.
    """
    paths = {each for each in listeners if isinstance(each, str)}
    return any(
        connection.unsent or connection.unread
        for connection in connections(*(each for each in listeners if isinstance(each, Address)))
    ) or (bool(paths) and any(_has_unread(descriptor, paths) for descriptor in _descriptors()))


def _has_unread(descriptor: int, paths: set[str]) -> bool:
    try:
        with _borrowed(descriptor) as connection:
            is_ours = connection.family == socket.AF_UNIX and connection.getsockname() in paths
            return is_ours and any(_queued(descriptor, queue) for queue in (_UNREAD_BY_PEER, _UNREAD))
    except OSError:  # it is no connection, gRPC's threads have closed it meanwhile, or the system can't tell
        return False


def _queued(descriptor: int, queue: int) -> int:
    """Return how many bytes the kernel has in a socket's `queue`."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, queue, bytes(4)))
    return int(count)


def close_listeners(*ports: int | str) -> None:
    """Refuse new connections to ports of this process, and leave the established ones alone.

    The port of a Unix socket is the path that it was bound to.

    grpc has no call for it but `stop`, which does more. A port that can't be closed is logged, and takes
    connections until the server stops.
    """
    found = [(descriptor, _listens_on(descriptor)) for descriptor in _descriptors()]
    for port in ports:
        _close_all([descriptor for descriptor, listens_on in found if listens_on == port], port)


def _close_all(listeners: list[int], port: int | str) -> None:
    try:
        for listener in listeners:
            _close(listener)
    except OSError as error:
        log.warning("port takes connections until the server stops", port=port, reason=error.strerror)
    if not listeners:
        log.warning("port takes connections until the server stops", port=port, reason="no listener found")


def _descriptors() -> Iterable[int]:
    try:
        return [int(entry.name) for entry in _DESCRIPTORS.iterdir()]
    except OSError:  # it is not there, not allowed, or there is no descriptor left to read it with
        return range(_MANY)


def _listens_on(descriptor: int) -> int | str | None:
    """Return the port of a descriptor that listens."""
    try:
        with _borrowed(descriptor) as candidate:
            is_listener = (
                candidate.type == socket.SOCK_STREAM
                and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            )
            return _port(candidate) if is_listener else None
    except OSError:  # it is no socket, or gRPC's threads have closed it meanwhile
        return None


def _port(listener: socket.socket) -> int | str | None:
    name: Any = listener.getsockname()
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        return int(name[1])
    return name if isinstance(name, str) else None  # a name that is no path is bytes


def _close(listener: int) -> None:
    """Put a listener that nobody knows in the place of `listener`.

    C-core goes on to wait for it, and closes it in the end. If its own listener were shut down, it would
    log an error, as it does if what takes its place can't accept: it may be about to.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.bind("")  # a name that the kernel makes up
            silent.listen()
            silent.settimeout(0)
            os.dup2(silent.fileno(), listener, inheritable=False)
    except OSError:  # no descriptor is left, or the system makes up no names
        with _borrowed(listener) as refusing:
            refusing.shutdown(socket.SHUT_RD)


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Yield the socket of a descriptor that stays C-core's.

    No duplicate, since C-core's poller would keep a socket that is closed while there is one.
    """
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()
