"""For tests of servicers: a real server on a loopback port, as production configures it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from grpc_common.config.sections import ServerConfig
from grpc_common.server.aio import AioEngine
from grpc_common.server.lifecycle import Lifecycle


@asynccontextmanager
async def serve_on_loopback[Servicer](
    servicer: Servicer, add_to_server: Callable[[Servicer, grpc.aio.Server], Any]
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve `servicer` on a free port and yield a channel to it."""
    server = grpc.aio.server(interceptors=[AioEngine(Lifecycle(ServerConfig().server))])
    add_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)
