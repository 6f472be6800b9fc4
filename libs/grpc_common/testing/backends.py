"""For tests of clients: real servers on loopback, and a source of endpoints that a test feeds."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class _Health(health.aio.HealthServicer):
    """Tells when it was first asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802 (gRPC's)
        """Send the status, and each new one."""
        self.asked.set()
        await super().Watch(request, context)


class Backend:
    """A service of bytes, with health, that remembers the last call and counts all of them.

    The methods of `/test.Backend/`: Echo and Create answer with the request, Hold does so once
    `release` is set; Watch answers twice, the second time once `release` is set; Collect joins a
    stream; Chat answers each request of a stream.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.failures: float = 0
        """How many of the next calls of Echo and Create fail with `code` and `trailers`."""
        self.code = grpc.StatusCode.UNAVAILABLE
        self.trailers: tuple[tuple[str, str], ...] = ()
        self.metadata: list[Any] = []
        self.deadline: float | None = None
        self.certificate = b""
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.health = _Health()

    async def echo(self, request: bytes, context: Any) -> bytes:
        """Answer with the request, or fail."""
        self._remember(context)
        if self.failures > 0:
            self.failures -= 1
            await context.abort(self.code, "as the test wants", self.trailers)
        return request

    async def hold(self, request: bytes, context: Any) -> bytes:
        """Answer once the test says so."""
        self._remember(context)
        await self.release.wait()
        return request

    async def watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answer, and again once the test says so."""
        self._remember(context)
        yield request
        await self.release.wait()
        yield request

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Answer with all requests, joined."""
        self._remember(context)
        return b"".join([request async for request in requests])

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each request with itself."""
        self._remember(context)
        async for request in requests:
            yield request

    def _remember(self, context: Any) -> None:
        self.calls += 1
        self.metadata = list(context.invocation_metadata())
        self.deadline = context.time_remaining()
        self.certificate = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        self.entered.set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have `server` serve this."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Create": grpc.unary_unary_rpc_method_handler(self.echo),
            "Hold": grpc.unary_unary_rpc_method_handler(self.hold),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Backend", handlers)])

    @classmethod
    @asynccontextmanager
    async def serving(
        cls,
        address: str = "127.0.0.1:0",
        credentials: grpc.ServerCredentials | None = None,
        *,
        options: Sequence[tuple[str, Any]] = (),
        has_health: bool = True,
    ) -> AsyncIterator[tuple[Self, str]]:
        """Serve a backend; yield it and its address."""
        backend = cls()
        server = grpc.aio.server(options=options)
        backend.add_to(server)
        if has_health:
            for name in ("", "test.Backend"):
                await backend.health.set(name, SERVING)
            health_pb2_grpc.add_HealthServicer_to_server(backend.health, server)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        await server.start()
        yield backend, address.replace(":0", f":{port}")
        backend.release.set()
        await server.stop(None)


def serve_in_process(report_address: Any) -> None:
    """Serve a backend until the process ends, and send its address through a pipe."""

    async def serve() -> None:
        async with Backend.serving() as (_, address):
            report_address.send(address)
            await asyncio.Event().wait()

    asyncio.run(serve())


class FedEndpoints:
    """An EndpointSource whose endpoints a test puts in."""

    def __init__(self, *first: Sequence[str] | Exception) -> None:
        self._queue: asyncio.Queue[Sequence[str] | Exception] = asyncio.Queue()
        for addresses in first:
            self.put(addresses)

    def put(self, addresses: Sequence[str] | Exception) -> None:
        """Have the endpoints be `addresses` from now on, or fail."""
        self._queue.put_nowait(addresses)

    async def watch(self) -> AsyncIterator[Sequence[str]]:
        """Yield what is put in."""
        while True:
            addresses = await self._queue.get()
            if isinstance(addresses, Exception):
                raise addresses
            yield addresses
