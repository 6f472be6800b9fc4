import asyncio
import os
import re
import ssl
import subprocess
import sys

import grpc
import pytest
import trustme
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing.server import memory
from k8s.checks.resources import quantity
from k8s.checks.servers import servers
from k8s.checks.testing import config_map, overlay
from services.user import server

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client says first: HTTP/2's preface, and settings without any."""

CALLERS = 20
"""Connections that make calls, of those that the server takes; each has 100 at a time at most."""

[BASE] = servers(overlay("dev"))


@pytest.fixture
def certificates(tmp_path):
    """Return a folder with a certificate for server and client, and its authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    return tmp_path


@pytest.fixture
def process(tmp_path, certificates):
    """Return a server with base's settings and mutual TLS."""
    config = tmp_path / "config.yaml"
    config.write_text(config_map(overlay("dev"))["data"]["config.yaml"])
    environ = {
        "CONFIG_FILE": str(config),
        "DATABASE_URL": f"sqlite:///{tmp_path}/users.db",
        "GRPC_PORT": "0",
        "METRICS_PORT": "0",
        "TLS_DIRECTORY": str(certificates),
        "TLS_REQUIRE_CLIENT_CERTIFICATE": "true",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, server.__file__]
    with subprocess.Popen(command, env=os.environ | environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_pod_has_memory_for_all_that_clients_may_do(process, certificates):
    """All connections that the server takes, and all calls with messages of any size, fit into the limit."""
    port = re.search(r'"grpc_port": (\d+)', process.stderr.readline())[1]
    idle = await connected(port, certificates, BASE.config.server.max_connections - CALLERS)
    channels = [channel(port, certificates) for _ in range(CALLERS)]
    stubs = [UserServiceStub(each) for each in channels]
    for size, count in [(100, 1000), (16_000, 1000), (1_000_000, 200), (9_000_000, 20)]:
        request = pb.CreateUserRequest(name=size * "x", email="ada@example.com")
        calls = [stubs[number % CALLERS].CreateUser(request, timeout=60) for number in range(count)]
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, grpc.aio.AioRpcError) for each in failures) or size == 100
    peak = memory(process.pid, "VmHWM")
    print(f"{len(idle)} idle connections; peak {peak / 2**20:.0f} MiB")
    assert process.poll() is None
    assert peak < quantity(BASE.container["resources"]["limits"]["memory"])
    await asyncio.gather(*(each.close() for each in channels))
    for writer in idle:
        writer.close()


async def connected(port, certificates, count):
    """Open connections that nothing is asked over, and return how they are written to."""
    context = ssl.create_default_context(cafile=certificates / "ca.crt")
    context.load_cert_chain(certificates / "tls.crt", certificates / "tls.key")
    context.set_alpn_protocols(["h2"])
    writers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
        writer.write(HELLO)
        await reader.read(1)  # the server's settings: it has taken the connection
        writers.append(writer)
    return writers


def channel(port, certificates):
    """Return a channel with a connection of its own, and no bound of its own on messages."""
    files = ("ca.crt", "tls.key", "tls.crt")
    credentials = grpc.ssl_channel_credentials(*((certificates / name).read_bytes() for name in files))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    return grpc.aio.secure_channel(f"localhost:{port}", credentials, options)
