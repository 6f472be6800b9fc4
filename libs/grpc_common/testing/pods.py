"""For tests of balancing: servers that come and go, slow ones too, and calls that never stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Self

import grpc

from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.testing.backends import Backend

_WORD = "test-word"


class Pod(Backend):
    """A backend behind a relay, which counts the connections and may delay them."""

    def __init__(self) -> None:
        super().__init__()
        self.address = ""
        """Of the relay."""
        self.connections = 0
        """How many have been opened."""
        self.open = 0
        """How many are open."""
        self.connect_time = 0.0
        """Seconds until a new connection can be used."""
        self._is_up = True
        self._relays: set[asyncio.Task[None]] = set()
        self.latency = 0.0
        """Seconds that Echo takes."""
        self.newest_word = -1
        """The highest number of a source's word that was known when a call to here began."""

    async def echo(self, request: bytes, context: Any) -> bytes:
        """Answer with the request after `latency`."""
        if self.latency:
            await asyncio.sleep(self.latency)
        return await super().echo(request, context)

    def _remember(self, context: Any) -> None:
        super()._remember(context)
        word = dict(self.metadata).get(_WORD)
        if word is not None:
            self.newest_word = max(self.newest_word, int(word))

    @asynccontextmanager
    async def relayed(self, address: str) -> AsyncIterator[Self]:
        """Have connections to a port of one's own arrive at the server's `address`."""
        host, _, port = address.rpartition(":")

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not self._is_up:
                writer.transport.abort()
                return
            self.connections += 1
            relay = asyncio.ensure_future(self._relay(reader, writer, host, int(port)))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.address = "{}:{}".format(*server.sockets[0].getsockname())
        try:
            yield self
        finally:
            server.close()
            await self.go_down()

    async def go_down(self) -> None:
        """Close all connections, and each new one."""
        self._is_up = False
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def come_up(self) -> None:
        """Take connections again."""
        self._is_up = True

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        self.open += 1
        try:
            await asyncio.sleep(self.connect_time)
            upstream_reader, upstream = await asyncio.open_connection(host, port)
            await _first_of(_copy(reader, upstream), _copy(upstream_reader, writer))
            upstream.transport.abort()
        finally:
            writer.transport.abort()
            self.open -= 1


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for what tells nobody that it has happened.

    Raises:
        TimeoutError: it has not within `seconds`.

    """
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0.01)


async def _first_of(*copies: Any) -> None:
    tasks = [asyncio.ensure_future(copy) for copy in copies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)


@asynccontextmanager
async def pods(
    count: int, *, credentials: Callable[[], grpc.ServerCredentials | None] = lambda: None
) -> AsyncIterator[list[Pod]]:
    """Serve so many pods, each with credentials of its own: C-core takes those that rotate only once."""
    async with AsyncExitStack() as stack:
        served = []
        for _ in range(count):
            pod, address = await stack.enter_async_context(Pod.serving(credentials=credentials()))
            served.append(await stack.enter_async_context(pod.relayed(address)))
        yield served


class Words:
    """A source of endpoints that knows when its word was taken."""

    def __init__(self, *first: Sequence[Pod | Endpoint | str]) -> None:
        self.taken = 0
        """How many sets the channel has taken."""
        self._said = 0
        self._queue: asyncio.Queue[Sequence[Any]] = asyncio.Queue()
        self._changed = asyncio.Event()
        for endpoints in first:
            self.put(endpoints)

    def put(self, endpoints: Sequence[Pod | Endpoint | str]) -> None:
        """Have these be the endpoints from now on."""
        self._said += 1
        self._queue.put_nowait([each.address if isinstance(each, Pod) else each for each in endpoints])

    async def say(self, endpoints: Sequence[Pod | Endpoint | str]) -> None:
        """Have these be the endpoints, and wait until the channel has taken that."""
        self.put(endpoints)
        await self.all_taken()

    async def all_taken(self) -> None:
        """Wait until the channel has taken all that was said."""
        said = self._said
        while self.taken < said:
            self._changed.clear()
            await self._changed.wait()

    async def watch(self) -> AsyncIterator[Sequence[Any]]:
        """Yield what is put in."""
        while True:
            yield await self._queue.get()
            self.taken += 1
            self._changed.set()


class Load:
    """Calls that are made all the time, each with the number of the source's newest word in it."""

    def __init__(self, opened: grpc.aio.Channel, words: Words | None = None) -> None:
        self._echo: Any = opened.unary_unary("/test.Backend/Echo")
        self._words = words
        self.done = 0
        self.failures: list[str] = []

    @asynccontextmanager
    async def of(self, workers: int, *, pause: float = 0, **options: Any) -> AsyncIterator[Self]:
        """Have so many callers make one call after the other, with a pause in seconds between them."""
        tasks = [asyncio.ensure_future(self._work(pause, options)) for _ in range(workers)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, pause: float, options: dict[str, Any]) -> None:
        while True:
            await self.call(**options)
            await asyncio.sleep(pause)

    async def call(self, **options: Any) -> None:
        """Make a call."""
        metadata = [] if self._words is None else [(_WORD, str(self._words.taken))]
        try:
            await self._echo(b"a", metadata=metadata, **options)
        except grpc.aio.AioRpcError as error:
            self.failures.append(f"{error.code().name}: {error.details()}")
        self.done += 1
