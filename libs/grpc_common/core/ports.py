"""The ports that a server listens on, and clear words where it can't."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from grpc_common.core.errors import StartError


class BindError(StartError):
    """A port can't be served; the text says which, why, and what to set."""


@contextmanager
def explain_bind_errors(port: int, variable: str) -> Iterator[None]:
    """Name `port`, and the environment `variable` that sets it, in the error of the block.

    Raises:
        BindError: the block could not listen.

    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BindError(
            f"port {port} can't be served ({reason}); set {variable} to another one, or to 0 for a free one"
        ) from None


def bind(
    server: grpc.aio.Server, port: int, variable: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Let `server` listen on `port` and return it, or the one that was free if it is 0.

    Raises:
        BindError: it is in use or not allowed.

    """
    with explain_bind_errors(port, variable):
        # gRPC would tell no reason, and print a log line of its own form.
        socket.create_server(("", port)).close()
        if credentials:
            return server.add_secure_port(f"[::]:{port}", credentials)
        return server.add_insecure_port(f"[::]:{port}")
