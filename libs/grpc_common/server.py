"""A gRPC server with health, reflection, metrics and an orderly end."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import grpc
import prometheus_client
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from grpc_common.config import ServerConfig
from grpc_common.errors import StatusInterceptor

log = structlog.get_logger()

# Without it two servers share a port in silence and each gets some of the connections.
_OPTIONS = [("grpc.so_reuseport", 0)]


class BindError(Exception):
    """A port can't be served; the text says which, why, and what to set."""


class Server:
    """Serves servicers until SIGTERM or SIGINT, then drains.

    Make it, add servicers and run it inside one event loop.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._server = grpc.aio.server(interceptors=[StatusInterceptor()], options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        self._names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add[Servicer](
        self,
        servicer: Servicer,
        add_to_server: Callable[[Servicer, grpc.aio.Server], Any],
        *,
        name: str,
    ) -> None:
        """Serve `servicer`, whose full service name is `name` (as in "user.UserService").

        `add_to_server` is the generated `add_<Service>Servicer_to_server`.
        """
        add_to_server(servicer, self._server)
        self._names.append(name)

    async def run(self, **announced: object) -> int:
        """Serve until SIGTERM or SIGINT, drain, and return the exit code 0.

        The first log line has the ports and `announced`. A second signal ends the process
        at once, as if it had no handler.

        Raises:
            BindError: a port is in use or not allowed.

        """
        reflection.enable_server_reflection(self._names, self._server)
        grpc_port = self._bind()
        metrics_port, stop_metrics = self._serve_metrics()
        signal_received = _first_signal()
        try:
            await self._server.start()
            for name in ("", *self._names):
                await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
            log.info("serving", grpc_port=grpc_port, metrics_port=metrics_port, **announced)
            await self._drain(await signal_received)
        finally:
            stop_metrics()
        return 0

    def _bind(self) -> int:
        port = self._config.grpc_port
        try:
            # gRPC would tell no reason, and print a log line of its own form.
            socket.create_server(("", port)).close()
            return self._server.add_insecure_port(f"[::]:{port}")
        except (OSError, RuntimeError) as error:
            raise _bind_error(port, "GRPC_PORT", error) from None

    def _serve_metrics(self) -> tuple[int, Callable[[], None]]:
        port = self._config.metrics_port
        try:
            httpd, _thread = prometheus_client.start_http_server(port)
        except OSError as error:
            raise _bind_error(port, "METRICS_PORT", error) from None

        def stop() -> None:
            httpd.shutdown()
            httpd.server_close()

        return httpd.server_port, stop

    async def _drain(self, signum: signal.Signals) -> None:
        log.info("draining", signal=signum.name, grace=self._config.drain_grace)
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._config.drain_delay)
        await self._server.stop(self._config.drain_grace)
        log.info("stopped")


def _bind_error(port: int, variable: str, error: Exception) -> BindError:
    reason = error.strerror if isinstance(error, OSError) else error
    return BindError(
        f"port {port} can't be served ({reason}); set {variable} to another one, or to 0 for a free one"
    )


def _first_signal() -> asyncio.Future[signal.Signals]:
    loop = asyncio.get_running_loop()
    received: asyncio.Future[signal.Signals] = loop.create_future()

    def receive(signum: signal.Signals) -> None:
        if received.done():
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        else:
            received.set_result(signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, receive, signum)
    return received
