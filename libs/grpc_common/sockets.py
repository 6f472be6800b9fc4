"""The TCP connections of a listening port, as the kernel knows them; gRPC itself tells nothing of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# One line a socket of this network namespace: number, local address, remote address, state,
# tx_queue:rx_queue, ...; see proc_pid_net(5) and Documentation/networking/proc_net_tcp.rst of the kernel.
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED = "01"  # TCP_ESTABLISHED of include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Connection:
    """An established connection, from the side that listens."""

    unsent: int
    """Bytes that were written but that the other side has not acknowledged yet."""

    unread: int
    """Bytes that have arrived but that this process has not read yet."""


def connections(port: int) -> list[Connection]:
    """Return the established connections of the listening `port`, over IPv4 and IPv6.

    It takes some 10 ms, and 5 µs more for each socket of the pod. The list is empty where there is
    no /proc, as on macOS.
    """
    return [connection for table in _TABLES for connection in _read(table, port)]


def _read(table: Path, port: int) -> Iterator[Connection]:
    try:
        text = table.read_text("ascii")
    except OSError:
        return
    local_port = f":{port:04X}"
    for line in text.splitlines():
        if local_port in line:  # a cheap look that spares most lines of a long table the split
            _, local, _, state, queues, *_ = line.split()
            if local.endswith(local_port) and state == _ESTABLISHED:
                yield Connection(*(int(queue, 16) for queue in queues.split(":")))
