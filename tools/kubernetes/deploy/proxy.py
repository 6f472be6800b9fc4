"""A proxy before the API server that a test has fail, as networks and API servers do."""

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

from tools.cluster import cluster


class Proxy:
    """Passes connections on, as long as there is no fault."""

    fault = ""
    """`cut` ends a connection at once, `stall` never answers, `mute` does not after TLS,
    a number is the HTTP status of all answers."""

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("https://").partition(":")
        self.backend = (host, int(port))
        self._certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(self._certificate)

    def serve(self, connection: socket.socket) -> None:
        """Pass a connection on to its end, or fail it."""
        match self.fault:
            case "":
                self._pass_on(connection)
            case "cut":
                pass
            case "stall":
                while connection.recv(4096):
                    pass
            case "mute":
                with self._certificate.wrap_socket(connection, server_side=True) as encrypted:
                    while encrypted.recv(4096):
                        pass
            case status:
                with self._certificate.wrap_socket(connection, server_side=True) as encrypted:
                    encrypted.recv(65536)
                    encrypted.sendall(_answer(int(status)))

    def _pass_on(self, connection: socket.socket) -> None:
        with socket.create_connection(self.backend) as backend:
            back = threading.Thread(target=_pipe, args=(backend, connection), daemon=True)
            back.start()
            _pipe(connection, backend)
            back.join()


@contextmanager
def running_proxy(running: cluster.Cluster, folder: Path) -> Iterator[tuple[Proxy, Path]]:
    """Yield a proxy, and a kubeconfig by which kubectl goes through it."""
    config = json.loads(running.kubeconfig.read_text())
    target = config["clusters"][0]["cluster"]
    proxy = Proxy(target["server"])

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # kubectl goes away
                proxy.serve(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address = f"https://127.0.0.1:{server.server_address[1]}"
        # A cluster that is given has a certificate for another name, and keeps its key.
        config["clusters"][0]["cluster"] = {"server": address, "insecure-skip-tls-verify": True}
        kubeconfig = folder / "proxied"
        kubeconfig.write_text(json.dumps(config))
        yield proxy, kubeconfig
        server.shutdown()


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _answer(status: int) -> bytes:
    """Return what a load balancer says by itself."""
    head = f"HTTP/1.1 {status} \r\nContent-Type: text/plain\r\nContent-Length: 4\r\nConnection: close"
    return f"{head}\r\n\r\nbusy".encode()
