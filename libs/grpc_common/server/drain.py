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
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import structlog

from grpc_common.core.ports import Address
from grpc_common.core.sockets import connections, plain
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


def close_listeners(*listeners: Address | str) -> None:
    """Refuse new connections to `listeners` of this process, and leave the established ones alone.

    A Unix socket is the path that it was bound to.

    grpc has no call for it but `stop`, which does more. A listener that can't be closed is logged, and takes
    connections until the server stops.
    """
    found = [(descriptor, _listens_on(descriptor)) for descriptor in _descriptors()]
    for listener in listeners:
        _close_all([descriptor for descriptor, bound in found if bound and _is_of(bound, listener)], listener)


def _close_all(descriptors: list[int], listener: Address | str) -> None:
    reason = None if descriptors else "no listener found"
    try:
        for descriptor in descriptors:
            _close(descriptor)
    except OSError as error:
        reason = error.strerror
    if reason:
        log.warning("address takes connections until the server stops", address=str(listener), reason=reason)


def _descriptors() -> Iterable[int]:
    try:
        return [int(entry.name) for entry in _DESCRIPTORS.iterdir()]
    except OSError:  # it is not there, not allowed, or there is no descriptor left to read it with
        return range(_MANY)


def _listens_on(descriptor: int) -> Address | str | None:
    """Return what a descriptor that listens is bound to."""
    try:
        with _borrowed(descriptor) as candidate:
            is_listener = (
                candidate.type == socket.SOCK_STREAM
                and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            )
            return _bound(candidate) if is_listener else None
    except OSError:  # it is no socket, or gRPC's threads have closed it meanwhile
        return None


def _bound(listener: socket.socket) -> Address | str | None:
    name: Any = listener.getsockname()
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        return Address(*name[:2])
    return name if isinstance(name, str) else None  # a name that is no path is bytes


def _is_of(bound: Address | str, listener: Address | str) -> bool:
    """Return whether what is bound so belongs to `listener`, which may stand for several addresses."""
    if isinstance(bound, str) or isinstance(listener, str):
        return bound == listener
    return bound.port == listener.port and (
        listener.host in {"", "localhost"}
        or ip_address(listener.host).is_unspecified  # gRPC takes 0.0.0.0 for both families
        or plain(ip_address(listener.host)) == plain(ip_address(bound.host))
    )


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
