import asyncio
import multiprocessing
import socket
import ssl
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import trustme

from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.tls.credentials import server_credentials

CLIENTS = 12
SECONDS = 8
"""Without the wait in credentials.py the server crashed within 3."""


def serve(directory: Path, port: Connection) -> None:
    """Serve nothing, with the certificates in `directory`, until killed."""

    async def run() -> None:
        server = grpc.aio.server()
        credentials = server_credentials(directory, require_client_certificate=False)
        port.send(server.add_secure_port("127.0.0.1:0", credentials))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(run())


def shake_hands(port: int, ca: Path, end: float, handshakes: list[int]) -> None:
    """Connect again and again until the time `end`, and count."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    while time.monotonic() < end:
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
                context.wrap_socket(connection, server_hostname="localhost"),
            ):
                handshakes.append(1)
        except ConnectionRefusedError:
            return  # the server is gone, which the test will see


def test_server_survives_rotation_under_concurrent_handshakes(tmp_path):
    """Certificates that change all the time, while clients connect, don't crash the process."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    directory = CertificateDirectory(tmp_path / "certificates", ca)
    certificates = [directory.issue() for _ in range(2)]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(directory.path, sender), daemon=True)
    server.start()
    sender.close()  # or nobody hears of a server that ends before it serves
    try:
        port = receiver.recv()
        end, handshakes = time.monotonic() + SECONDS, []
        arguments = (port, tmp_path / "ca.pem", end, handshakes)
        clients = [threading.Thread(target=shake_hands, args=arguments) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        while time.monotonic() < end:
            directory.replace(certificates[0])
            certificates.reverse()
        for client in clients:
            client.join()
        assert server.is_alive()
    finally:
        server.kill()
    assert len(handshakes) > CLIENTS
