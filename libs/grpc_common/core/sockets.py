"""The TCP connections of this process as the kernel knows them; gRPC itself tells nothing of them."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from grpc_common.core.ports import Address

# One line a socket of this network namespace: number, local address, remote address, state,
# tx_queue:rx_queue, ...; see proc_pid_net(5) and Documentation/networking/proc_net_tcp.rst of the kernel.
_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED = 1  # TCP_ESTABLISHED of include/net/tcp_states.h
_CLOSE_WAIT = 8  # TCP_CLOSE_WAIT: the other side has ended its half, and still takes ours

# Questions about single connections; see sock_diag(7).
_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG of linux/netlink.h
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY of linux/sock_diag.h
_ONE = 0x1  # NLM_F_REQUEST of linux/netlink.h
_ALL = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_INFO = 2  # INET_DIAG_INFO of linux/inet_diag.h, and as a bit of the question 1 << (2 - 1)
_ANY_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_QUESTION = struct.Struct("=BBBxI2s2s16s16sI8s")
"""inet_diag_req_v2: family, protocol, extensions, states, both ports, both addresses, interface, cookie."""
_ANSWER = struct.Struct("=Bxxx2s2s16s16s32x")
"""inet_diag_msg: family, both ports, both addresses."""
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_TCP_INFO = struct.Struct("=144xI52xQQ")
"""tcp_info of linux/tcp.h: tcpi_notsent_bytes, tcpi_bytes_sent, tcpi_bytes_retrans."""

_MAX_LOCAL_ENDS = 16
"""A server has one for each pair of its pod's address and its port. One tried in vain costs a look 10 µs."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An established connection, from the side that listens."""

    unsent: int
    """Bytes that were written but that the other side has not acknowledged yet."""

    unread: int
    """Bytes that have arrived but that this process has not read yet."""


def connections(*listeners: int | Address) -> list[Connection]:
    """Return the established connections of ports, or of addresses that are not Unix sockets.

    A port means all interfaces. Another server may have the same one on another address of this machine.
    It takes some 10 ms, and 5 µs more for each socket of the pod. The list is empty where there is
    no /proc, as on macOS.
    """
    ends = tuple(_in_table(each) for each in listeners)
    return [connection for table in _TABLES for connection in _read(table, ends)]


def _in_table(listener: int | Address) -> str:
    """Return how the local addresses of a listener's connections end in the tables.

    That of IPv4 ends as its counterpart ::ffff:1.2.3.4, which connections to a listener for both have.
    """
    address = Address(port=listener) if isinstance(listener, int) else listener
    host = b"" if address.host in {"", "localhost"} else ip_address(address.host).packed
    # The kernel reads the bytes as numbers of the machine's own order.
    words = struct.unpack(f"={len(host) // 4}I", host) if any(host) else ()
    return "".join(f"{word:08X}" for word in words) + f":{address.port:04X}"


def _read(table: Path, ends: tuple[str, ...]) -> Iterator[Connection]:
    try:
        text = table.read_text("ascii")
    except OSError:
        return
    for line in text.splitlines():
        # A cheap look spares most lines of a long table the split.
        if any(end in line for end in ends):
            _, local, _, state, queues, *_ = line.split()
            if local.endswith(ends) and int(state, 16) == _ESTABLISHED:
                yield Connection(*(int(queue, 16) for queue in queues.split(":")))


@dataclass(frozen=True, slots=True)
class End:
    """One end of a connection."""

    address: IPv4Address | IPv6Address
    port: int

    @classmethod
    @lru_cache(1024)
    def of_peer(cls, peer: str) -> Self | None:
        """Return what `peer` names, in the form of ServicerContext.peer, or None if it is no TCP connection.

        The forms are ipv4:127.0.0.1:5, ipv6:[::1]:5, and ipv6:%5Bfe80::1%252%5D:5, as gRPC writes
        the same kind with the interface 2.
        """
        scheme, _, rest = unquote(peer).partition(":")
        host, _, port = rest.rpartition(":")
        if scheme not in {"ipv4", "ipv6"}:
            return None
        try:
            return cls(plain(ip_address(host.strip("[]"))), int(port))
        except ValueError:
            return None

    @property
    def family(self) -> int:
        """The socket family of its address."""
        return socket.AF_INET if isinstance(self.address, IPv4Address) else socket.AF_INET6

    @property
    def interface(self) -> int:
        """The number of the interface that a link-local address belongs to, or 0."""
        scope = getattr(self.address, "scope_id", None) or "0"
        return int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)


def plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that a socket for both has as ::ffff:127.0.0.1, or else `address`."""
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True, slots=True)
class Sending:
    """How far the kernel is with what was written to a connection."""

    sent: int
    """Bytes that have left so far, or 0 from a kernel before 4.19, which does not count them."""

    unsent: int
    """Bytes that were written and have not left yet."""

    @classmethod
    def from_tcp_info(cls, tcp_info: bytes) -> Self:
        """Return what the kernel's struct of this name says, which is shorter the older the kernel is."""
        unsent, sent, sent_again = _TCP_INFO.unpack_from(tcp_info.ljust(_TCP_INFO.size, b"\0"))
        return cls(sent - sent_again, unsent)


class SendQueues:
    """The send queues of a server's connections, by the remote end.

    The kernel finds one among any number of connections in 20 µs if it is told both ends. gRPC tells only
    the remote end, but a server has few local ones, so a look tries those that were seen before. Only for
    a new one the kernel walks through all connections of the pod, which takes 0.3 ms and more.

    The descriptors would be no help: they are C-core's, which closes and reuses them at any time, and to find
    that of a new connection all have to be asked, which takes 25 ms if there are 8000.
    """

    def __init__(self) -> None:
        self._local_ends: list[End] = []
        self._kernel: socket.socket | None = None

    def __del__(self) -> None:
        self.close()

    def look(self, remote: End) -> Sending | None:
        """Return how far the connection to `remote` is.

        It is None if there is no such connection, and where the kernel can't be asked: on macOS, and where
        netlink is forbidden.
        """
        try:
            kernel = self._kernel = self._kernel or _open()
            return self._from_known_end(kernel, remote) or self._from_any_end(kernel, remote)
        except (AttributeError, OSError):
            self.close()  # it may still have answers to this question
            return None

    def close(self) -> None:
        """Let go of the descriptor until the next look."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def _from_known_end(self, kernel: socket.socket, remote: End) -> Sending | None:
        for local in self._local_ends:
            if local.family == remote.family:
                for _, sending in _ask(kernel, remote.family, remote, local):
                    return sending
        return None

    def _from_any_end(self, kernel: socket.socket, remote: End) -> Sending | None:
        # A listener for both families has connections over IPv4 whose sockets are of IPv6.
        for family in (remote.family, socket.AF_INET6):
            for local, sending in _ask(kernel, family, remote):
                self._local_ends = [local, *self._local_ends][:_MAX_LOCAL_ENDS]
                return sending
        return None


def _open() -> socket.socket:
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
    kernel.settimeout(0)  # the answers are there at once
    return kernel


def _ask(
    kernel: socket.socket, family: int, remote: End, local: End | None = None
) -> list[tuple[End, Sending]]:
    """Return the local end of the connection to `remote` and how far it is; nothing if there is none."""
    question = _QUESTION.pack(
        family,
        socket.IPPROTO_TCP,
        1 << (_INFO - 1),
        1 << _ESTABLISHED | 1 << _CLOSE_WAIT,
        local.port.to_bytes(2) if local else b"",
        remote.port.to_bytes(2),
        local.address.packed if local else b"",
        remote.address.packed,
        remote.interface,
        _ANY_COOKIE,
    )
    flags = _ONE if local else _ALL
    kernel.send(_HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, flags, 0, 0) + question)
    return [
        (local_end, Sending.from_tcp_info(_tcp_info(answer)))
        for answer in _answers(kernel, flags)
        for local_end, remote_end in [_ends(answer[: _ANSWER.size])]
        if (remote_end.address.packed, remote_end.port) == (remote.address.packed, remote.port)
    ]


def _answers(kernel: socket.socket, flags: int) -> Iterator[bytes]:
    while True:
        answers = kernel.recv(1 << 16)
        while answers:
            length, kind, *_ = _HEADER.unpack_from(answers)
            if kind != _BY_FAMILY:  # the end of all answers, or an error
                return
            yield answers[_HEADER.size : length]
            answers = answers[length:]
        if flags == _ONE:
            return


@lru_cache(1024)
def _ends(answer: bytes) -> tuple[End, End]:
    """Return the local end and the remote one."""
    family, local_port, remote_port, local, remote = _ANSWER.unpack_from(answer)
    size = 4 if family == socket.AF_INET else 16
    return (
        End(plain(ip_address(local[:size])), int.from_bytes(local_port)),
        End(plain(ip_address(remote[:size])), int.from_bytes(remote_port)),
    )


def _tcp_info(answer: bytes) -> bytes:
    attributes = answer[_ANSWER.size :]
    while attributes:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _INFO:
            return attributes[_ATTRIBUTE.size : length]
        attributes = attributes[-(-length // 4) * 4 :]
    return b""
