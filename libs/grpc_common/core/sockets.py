"""The TCP connections of a listening port, as the kernel knows them; gRPC itself tells nothing of them."""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# One line a socket of this network namespace: number, local address, remote address, state,
# tx_queue:rx_queue, ...; see proc_pid_net(5) and Documentation/networking/proc_net_tcp.rst of the kernel.
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED = "01"  # TCP_ESTABLISHED of include/net/tcp_states.h

# The question about the connections with one remote port, and the answers; see sock_diag(7).
_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG of linux/netlink.h
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY of linux/sock_diag.h
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP of linux/netlink.h
_INFO = 2  # INET_DIAG_INFO of linux/inet_diag.h, and as a bit of the question 1 << (2 - 1)
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST = struct.Struct(
    "=BBBxI2x2s44x"
)  # inet_diag_req_v2: family, protocol, extensions, states, remote port
_ATTRIBUTES = _HEADER.size + 72  # behind inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_NOT_SENT = struct.Struct("=144xI")  # tcp_info: tcpi_notsent_bytes


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


def unsent(remote_port: int) -> int:
    """Return how many bytes that were written to clients with this port have not left yet.

    Hardly ever two clients have the same one. It takes 0.4 ms. The answer is 0 where the kernel can't be
    asked, as on macOS.
    """
    return sum(_unsent(socket.AF_INET, remote_port)) + sum(_unsent(socket.AF_INET6, remote_port))


def _unsent(family: int, remote_port: int) -> Iterator[int]:
    states = 1 << int(_ESTABLISHED, 16)
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), states, remote_port.to_bytes(2))
    header = _HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, 0, 0)
    with (
        suppress(AttributeError, OSError),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel,
    ):
        kernel.send(header + request)
        yield from _answers(kernel)


def _answers(kernel: socket.socket) -> Iterator[int]:
    while True:
        answers = kernel.recv(1 << 16)
        while answers:
            length, kind, *_ = _HEADER.unpack_from(answers)
            if kind != _BY_FAMILY:  # the last one, or an error
                return
            yield from _not_sent(answers[_ATTRIBUTES:length])
            answers = answers[length:]


def _not_sent(attributes: bytes) -> Iterator[int]:
    while attributes:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _INFO:
            yield from _NOT_SENT.unpack_from(attributes, _ATTRIBUTE.size)
        attributes = attributes[-(-length // 4) * 4 :]
