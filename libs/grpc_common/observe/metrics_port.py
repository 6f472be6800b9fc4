"""The HTTP port of metrics: a few threads for whoever asks, however many connections hang."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, override
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

THREADS = 16
"""Connections that are served at a time, each by a thread. One more, and the oldest is cut off."""

TIMEOUT = 10.0
"""Seconds that a connection may take in all: Prometheus' own scrape_timeout, after which nobody waits."""

_ROOM = 1.0
"""Seconds in which a connection that was cut off leaves its thread, unless a collector takes longer."""


class _Request(WSGIRequestHandler):
    server: HttpServer

    @override
    def parse_request(self) -> bool:
        """Make no page for a connection that was cut off in the middle of its headers."""
        return super().parse_request() and not self.server.has_cut_off(self.connection)

    def log_message(self, *_arguments: object) -> None:
        """Log nothing: the log is for the service."""

    def get_stderr(self) -> io.StringIO:
        """Have the base class print its tracebacks nowhere; what fails on our side is logged by us."""
        return io.StringIO()


class HttpServer(ThreadingMixIn, WSGIServer):
    """Serves `page`, a WSGI application, at every path of a port.

    It listens on all interfaces. A full server cuts the oldest connection off, so that a client that asks
    at once gets through, and none keeps a thread for longer than TIMEOUT.

    Raises:
        OSError: the port can't be bound.

    """

    daemon_threads = True
    request_queue_size = 1024
    """Connections that wait in the kernel; if it is full, Prometheus' next attempt is a second later."""

    allow_reuse_port = False  # or two programs share a port in silence
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, page: Callable[..., Iterable[bytes]]) -> None:
        self._changed = threading.Condition()
        self._since: dict[Any, float] = {}
        """When each open connection has begun, the oldest first."""
        self._cut_off: set[Any] = set()
        """Those that are to leave their threads."""
        super().__init__(("", port), _Request)
        self.set_app(page)

    @override
    def server_bind(self) -> None:
        """Take IPv4 as well, and ask nobody for this machine's name, as the base class does."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "metrics", self.server_address[1]
        self.setup_environ()

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, once there is room."""
        if self._make_room():
            with self._changed:
                self._since[request] = time.monotonic()
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _make_room(self) -> bool:
        with self._changed:
            if len(self._since) >= THREADS:
                self._hang_up([request for request in self._since if request not in self._cut_off][:1])
            return self._changed.wait_for(lambda: len(self._since) < THREADS, _ROOM)

    @override
    def shutdown_request(self, request: Any) -> None:
        """Close a connection, at the end of its thread."""
        with self._changed:  # before it is closed, so that nothing here is a socket of somebody else
            self._since.pop(request, None)
            self._cut_off.discard(request)
            self._changed.notify()
        super().shutdown_request(request)

    @override
    def service_actions(self) -> None:
        """Cut off who takes too long; it is called twice a second."""
        self._hang_up_before(time.monotonic() - TIMEOUT)

    @override
    def server_close(self) -> None:
        """Close the port, and all connections."""
        super().server_close()
        self._hang_up_before(time.monotonic())

    def _hang_up_before(self, time: float) -> None:
        with self._changed:
            self._hang_up([request for request, since in self._since.items() if since <= time])

    def _hang_up(self, requests: list[Any]) -> None:
        """Have the threads that read or write `requests` find them closed."""
        self._cut_off.update(requests)
        for request in requests:
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def has_cut_off(self, request: Any) -> bool:
        """Return whether a connection is to leave its thread."""
        return request in self._cut_off

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that goes away or sends garbage; a traceback would be printed."""
