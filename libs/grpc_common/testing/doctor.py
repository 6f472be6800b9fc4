"""Runs the doctor over real servers."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


async def doctor(*arguments: str, **variables: str) -> tuple[int | None, str, str]:
    """Run the doctor as a process of its own; return exit code, standard output and error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "grpc_common.commands.doctor", *arguments),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def serving(
    *statuses: str,
    credentials: Callable[[], grpc.ServerCredentials] | None = None,
    has_health: bool = True,
    first: int = 1,
) -> AsyncIterator[int]:
    """Serve one status each on 127.0.0.1, 127.0.0.2, ... at the same port, which is yielded.

    `first` is the last number of the first address.
    """
    port = 0
    servers = []
    for number, status in enumerate(statuses, first):
        server = grpc.aio.server()
        if has_health:
            servicer = health.aio.HealthServicer()
            await servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        address = f"127.0.0.{number}:{port}"
        if credentials:
            port = server.add_secure_port(address, credentials())
        else:
            port = server.add_insecure_port(address)
        await server.start()
        servers.append(server)
    try:
        yield port
    finally:
        await asyncio.gather(*(server.stop(None) for server in servers))


def addresses(port: int, count: int) -> str:
    """Return a target of several servers."""
    return "ipv4:" + ",".join(f"127.0.0.{number}:{port}" for number in range(1, count + 1))
