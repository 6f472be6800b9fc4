"""test.Echo on grpc_common, as these tests call it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import grpc

import grpc_common
from grpc_common import Server, ServerConfig
from grpc_common.observe.logs import set_level

SERVICE = "test.Echo"


class Echo:
    """A service of bytes on a server that can be restarted.

    Echo answers with the request, Count with the numbers below it, Chat with each request of a
    stream. Refuse fails with details. Hang sets `entered`, never answers, and sets `hung_up` when
    it is cancelled.
    """

    def __init__(self, *, metrics: bool, settings: dict[str, Any]) -> None:
        self.port = 0
        self.calls = 0
        """How often Echo was called."""
        self.pause = 0.0
        """Seconds that Echo takes."""
        self.deadline: float | None = None
        """Seconds that the last call of Echo had left."""
        self.ready = True
        """Whether what the server depends on is there."""
        self.entered = asyncio.Event()
        self.hung_up = asyncio.Event()
        self._metrics = {"enabled": metrics, "port": 0}
        self._settings = settings
        self._running = AsyncExitStack()

    async def echo(self, request: bytes, context: Any) -> bytes:
        """Answer with the request."""
        self.calls += 1
        self.deadline = context.time_remaining()
        if self.pause:
            await asyncio.sleep(self.pause)
        return request

    async def count(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        """Answer with the numbers below the request."""
        for number in range(int(request)):
            yield str(number).encode()

    async def chat(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        """Answer each request with itself."""
        async for request in requests:
            yield request

    async def refuse(self, _request: bytes, _context: Any) -> bytes:
        """Fail with details that name a field."""
        raise grpc_common.invalid_argument({"name": "must not be empty"})

    async def hang(self, _request: bytes, _context: Any) -> bytes:
        """Answer never."""
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.hung_up.set()
        return b""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have `server` serve this."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])

    async def start(self) -> None:
        """Serve, on the same port as before if there was one."""
        config = {
            "server": {"port": self.port, "drain": {"delay": "0s"}} | self._settings,
            "metrics": self._metrics,
        }
        server = Server(ServerConfig.model_validate(config))
        server.add(self, Echo.add_to)
        server.depend_on("the test", self._probe, interval=0.05, failures=1)
        self.port = await self._running.enter_async_context(server.serving())

    async def stop(self) -> None:
        """Drain."""
        await self._running.aclose()

    async def _probe(self) -> None:
        if not self.ready:
            raise RuntimeError("as the test wants")

    @classmethod
    @asynccontextmanager
    async def serving(cls, *, metrics: bool = False, **settings: Any) -> AsyncIterator[Self]:
        """Serve on a free port until the block ends, with `settings` in the section `server`."""
        set_level("warning")
        echo = cls(metrics=metrics, settings=settings)
        await echo.start()
        try:
            yield echo
        finally:
            await echo.stop()
