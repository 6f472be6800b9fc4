"""The addresses that a server listens on, and clear words where it can't."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from grpc_common.core.errors import StartError

_HOSTS = {"": ["::"], "localhost": ["127.0.0.1", "::1"]}
"""What stands for several addresses. gRPC takes :: for all interfaces, over IPv4 too."""


class BindError(StartError):
    """An address can't be served; the text says which, why, and what to set."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: on a TCP port, or on a Unix socket."""

    host: str = ""
    """An IP address, `localhost` for both addresses of loopback, or empty for all interfaces."""

    port: int = 0
    """0 takes a free one."""

    path: Path | None = None
    """The Unix socket; if there is one, host and port mean nothing."""

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@contextmanager
def explain_bind_errors(port: int | Address, setting: str) -> Iterator[None]:
    """Name what can't be served, and the `setting` of it, in the error of the block.

    Raises:
        BindError: the block could not listen.

    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        has_port = not isinstance(port, Address) or port.path is None
        what = f"port {port}" if isinstance(port, int) else str(port)
        free = ", or to 0 for a free one" if isinstance(port, int) else ", or its port to 0 for a free one"
        raise BindError(
            f"{what} can't be served ({reason}); set {setting} to another one{free if has_port else ''}"
        ) from None


def bind(server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None = None) -> int:
    """Let `server` listen on a TCP port and return its number.

    Raises:
        OSError: it is in use or not allowed.
        RuntimeError: so gRPC says.

    """
    port = address.port
    for host in _HOSTS.get(address.host, [address.host]):
        try:
            _try(address.host and host, port)
        except OSError:
            if (address.host, host) == ("localhost", "::1") and not _has_loopback_v6():
                continue
            raise
        port = add(server, str(Address(host, port)), credentials)
    return port


def add(server: grpc.aio.Server, target: str, credentials: grpc.ServerCredentials | None) -> int:
    """Let `server` listen where gRPC's name of an address says, and return the port.

    Raises:
        RuntimeError: it can't.

    """
    if credentials:
        return server.add_secure_port(target, credentials)
    return server.add_insecure_port(target)


def _try(host: str, port: int) -> None:
    """Listen for a moment: gRPC would tell no reason, and print a log line of its own form."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        candidate.bind((host, port))
        candidate.listen()


def _has_loopback_v6() -> bool:
    try:
        _try("::1", 0)
    except OSError:
        return False
    return True
