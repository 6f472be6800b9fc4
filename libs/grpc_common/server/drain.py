"""The end of a server without a failed call.

grpc.aio's `Server.stop` cancels calls that have just arrived, those that arrive until its
GOAWAY does, and what a client has not read yet when its connection is closed. So a server
stops only once nobody calls it any more: its port takes no new connections, balancing
clients have left since health says NOT_SERVING, and the others leave when their connection
reaches max_connection_age, whose GOAWAY loses nothing.
"""

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from grpc_common.core.sockets import connections
from grpc_common.server.admission import Admission

_LOOKS = 5
_INTERVAL = 0.025
"""Seconds between two looks. So many in a row without a call, a hundred round trips in a cluster, mean that
no more will come; looks are counted, not time, which passes even if the process is too busy to see calls."""


async def quiet(admission: Admission, port: int) -> None:
    """Wait until no call is in flight, none arrives any more, and all responses have been sent."""
    quiet_looks = 0
    while quiet_looks < _LOOKS:
        arrivals = admission.arrivals
        await asyncio.sleep(_INTERVAL)
        is_quiet = admission.arrivals == arrivals and not admission.in_flight and not _has_traffic(port)
        quiet_looks = quiet_looks + 1 if is_quiet else 0


def _has_traffic(port: int) -> bool:
    return any(connection.unsent or connection.unread for connection in connections(port))


def close_listeners(port: int) -> None:
    """Refuse new connections to a port of this process, and leave the established ones alone.

    grpc has no call for it but `stop`, which does more.
    """
    for candidate in _sockets():
        with candidate:
            if _listens(candidate, port):
                candidate.shutdown(socket.SHUT_RD)


def _sockets() -> Iterator[socket.socket]:
    """Yield a duplicate of each socket of this process."""
    for file in Path("/proc/self/fd").iterdir():
        descriptor = int(file.name)
        with suppress(OSError):  # gRPC's threads may close it meanwhile
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                yield socket.socket(fileno=os.dup(descriptor))


def _listens(candidate: socket.socket, port: int) -> bool:
    return (
        candidate.family in (socket.AF_INET, socket.AF_INET6)
        and candidate.type == socket.SOCK_STREAM
        and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        and candidate.getsockname()[1] == port
    )
