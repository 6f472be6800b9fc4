"""All that a server listens on, opened together and closed together."""

from collections.abc import Callable

import grpc

from grpc_common.config.addresses import parse_address
from grpc_common.config.sections import ServerConfig
from grpc_common.core.ports import Address, add, bind, explain_bind_errors
from grpc_common.core.unix_sockets import SocketFile
from grpc_common.server import drain


class Listeners:
    """The port of a server and the further addresses of server.listen.

    Args:
        config: says where to listen.
        credentials: makes those of one listener, None without TLS; each needs its own, since gRPC is told
            of new files once for each.

    Raises:
        StartError: so `credentials` says.

    """

    def __init__(
        self, config: ServerConfig, credentials: Callable[[], grpc.ServerCredentials | None]
    ) -> None:
        self._section = config.server
        self._prefix = config.env_prefix
        wanted = [listener.tls is not False for listener in config.server.listen]
        self._credentials = [credentials() if is_wanted else None for is_wanted in (True, *wanted)]
        self._files: list[SocketFile] = []
        self.addresses: list[Address] = []
        """The TCP ports that were taken; the first is server.port."""
        self.further: list[str] = []
        """What was taken for server.listen, in the same order."""

    def open(self, server: grpc.aio.Server) -> int:
        """Have `server` listen, and return the main port.

        Raises:
            BindError: an address is in use or not allowed.

        """
        try:
            return self._open(server)
        except BaseException:
            self.remove_files()
            raise

    def _open(self, server: grpc.aio.Server) -> int:
        section = self._section
        own, *further = self._credentials
        port = open_port(server, section.host, section.port, f"{self._prefix}GRPC_PORT", own)
        self.addresses.append(Address(section.host, port))
        for index, (listener, credentials) in enumerate(zip(section.listen, further, strict=True)):
            address = parse_address(listener.address)
            with explain_bind_errors(address, f"server.listen.{index}.address"):
                taken = self._listen(server, address, credentials)
            self.further.append(str(taken))
        return port

    def _listen(
        self, server: grpc.aio.Server, address: Address, credentials: grpc.ServerCredentials | None
    ) -> Address:
        if address.path is not None:
            file = SocketFile(address.path, lambda path: add(server, f"unix:{path}", credentials))
            self._files.append(file)
            return address
        taken = Address(address.host, bind(server, address, credentials))
        self.addresses.append(taken)
        return taken

    @property
    def bound(self) -> list[Address | str]:
        """All addresses, and the paths that Unix sockets were bound to, as the kernel has them."""
        return [*self.addresses, *(str(file.bound) for file in self._files)]

    def close(self) -> None:
        """Refuse new connections everywhere, and leave the established ones alone."""
        drain.close_listeners(*self.bound)
        self.remove_files()

    def remove_files(self) -> None:
        """Remove the Unix sockets."""
        for file in self._files:
            file.remove()

    def forget_credentials(self) -> None:
        """Let go of the certificates, whose metric shows for as long as they are held."""
        self._credentials.clear()


def open_port(
    server: grpc.aio.Server,
    host: str,
    port: int,
    variable: str,
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    """Have `server` listen on a port of server.host, and return it.

    Raises:
        BindError: it is in use or not allowed.

    """
    address = Address(host, port)
    with explain_bind_errors(address if host else port, f"{variable}, or server.host," if host else variable):
        return bind(server, address, credentials)
