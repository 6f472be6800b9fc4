"""A call on C-core's completion queue."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast, override

import grpc
from grpc._cython import cygrpc  # type: ignore[import-not-found, attr-defined, unused-ignore]  # compiled

from grpc_common.server.handler import Handler
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.server.queue.context import QueueContext
from grpc_common.server.queue.loop import QueueLoop
from grpc_common.server.queue.selector import Sent
from grpc_common.server.rpc import CANCELLATION_DELAY, Rpc

_HEADERS = cygrpc.SendInitialMetadataOperation((), 0)
_OK = cygrpc.SendStatusFromServerOperation((), 0, b"", 0)
"""What has nothing of a call in it and receives nothing can be used for all calls."""

_OVERTAKING = 0.01
"""Seconds that a status waits for a message that is behind the headers of its call: a round trip, or less."""

_STALLED = 0.1
"""Seconds that a status waits for a message before it: who does not read now may never."""

_LARGE = 2**14
"""Bytes of a message that is sent at once: it fills packets by itself."""

_MORE_FOLLOWS = cygrpc.WriteFlag.buffer_hint
"""C-core keeps the message until the next one. Together with the headers it would keep it for ever."""

_INLINE = 64
"""Messages of a stream that are written before other tasks have their turn."""


def _see(seen: asyncio.Future[None], _event: Any) -> None:
    if not seen.done():
        seen.set_result(None)


class QueueRpc(Rpc):
    """A call, from its headers until C-core has sent its status."""

    __slots__ = (
        "_arrived",
        "_call",
        "_context",
        "_handler",
        "_has_headers",
        "_has_received",
        "_held",
        "_is_answered",
        "_is_flushing",
        "_is_receiving",
        "_is_sending",
        "_is_watched",
        "_left",
        "_lifecycle",
        "_loop",
        "_message",
        "_overtaken",
        "_sent",
        "_taken",
        "_task",
        "_turn",
        "_until_pause",
        "context",
        "is_gone",
    )

    def __init__(self, loop: QueueLoop, request: Any, handler: Handler, lifecycle: Lifecycle) -> None:
        self._loop = loop
        self._call = request.call
        self._handler = handler
        self._lifecycle = lifecycle
        self._context = QueueContext(request)
        self.context = cast("grpc.aio.ServicerContext[Any, Any]", self._context)
        self.is_gone = False
        self._task: asyncio.Task[None] | None = None
        self._is_watched = False
        self._has_headers = False
        self._is_answered = False
        self._is_receiving = False
        self._message: bytes | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._has_received = False
        self._overtaken: asyncio.Future[None] | None = None
        self._left: list[Callable[[], None]] = []
        self._turn: asyncio.Lock | None = None
        self._sent: Sent | None = None
        self._is_sending = False
        self._taken: asyncio.Future[None] | None = None
        self._held: tuple[bytes, int] | None = None
        """A message with its flags, which waits for the next one."""
        self._is_flushing = False
        self._until_pause = _INLINE

    def begin(self) -> None:
        """Start the life of the call with its first message: then it is often over in one step."""
        self._receive()
        self._loop.waiter.is_expecting = True

    def start(self) -> None:
        """Start the task of the call, unless it has begun."""
        if self._task is not None or self._is_answered:
            return
        self._task = task = asyncio.Task(self._live(), loop=self._loop, eager_start=True)
        if not task.done() and not self._is_answered:
            self._is_watched = True
            self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)

    async def _live(self) -> None:
        try:
            message = await self._lifecycle.live(self._handler, self)
            if not self._is_answered:
                if self._turn is not None:
                    await self._quiet(self._turn)
                self._end(message, _OK)
        except BaseException:
            if not self._is_answered:  # the caller is gone
                self._forget()
            raise
        finally:
            if self._call is None:
                self._task = None

    def _closed(self, event: Any) -> None:
        task = self._task
        if event.batch_operations[0].cancelled() and task is not None and not task.done():
            self.is_gone = True
            task.cancel()

    def _receive(self) -> None:
        self._is_receiving = True
        if self._call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received):
            raise asyncio.CancelledError

    def _received(self, event: Any) -> None:
        self._is_receiving = False
        self._has_received = True
        self._message = event.batch_operations[0].message()
        if self._task is None:
            self.start()
            return
        for waiting in (self._arrived, self._overtaken):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    @override
    async def read(self) -> bytes | None:
        while self._arrived is not None:  # another task reads, and has the next message
            await asyncio.wait([self._arrived])
        if self._message is None:
            if not self._is_receiving:
                self._receive()
            self._arrived = self._loop.create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        message, self._message = self._message, None
        if message is None:
            await asyncio.sleep(CANCELLATION_DELAY)
            await self._read_past_the_end()
        return message

    async def _read_past_the_end(self) -> None:
        """Return behind all that C-core does with the call by now, of which its cancellation may be."""
        seen = self._arrived = self._loop.create_future()
        operations = (cygrpc.ReceiveMessageOperation(0),)
        try:
            if self._call is not None and not self._call.start_server_batch(operations, partial(_see, seen)):
                await seen
        finally:
            self._arrived = None

    @override
    async def open(self, headers: tuple[tuple[str, str | bytes], ...]) -> None:
        async with self._writing():
            await self._room()
            if self._has_headers:
                raise grpc.aio.UsageError("the initial metadata was sent before")
            self._start(self._headers(headers))
            await self._room()

    @override
    async def write(self, message: bytes) -> None:
        async with self._writing():
            await self._room()
            if self._held is not None:
                self._send_held(_MORE_FOLLOWS)
                await self._room()
            self._held = message, self._write_flags()
            if self._has_headers and len(message) < _LARGE:
                self._flush_soon()
            else:
                self._send_held()
                await self._room()
        self._until_pause -= 1
        if not self._until_pause:
            self._until_pause = _INLINE
            await asyncio.sleep(0)

    @override
    async def flush(self) -> None:
        async with self._writing():
            await self._room()
            if self._held is not None:
                self._send_held()
                await self._room()

    def _writing(self) -> asyncio.Lock:
        """Return what has one task at a time write: C-core takes one thing at a time."""
        if self._turn is None:
            self._turn = asyncio.Lock()
        return self._turn

    async def _room(self) -> None:
        """Wait until C-core has taken what was begun.

        Raises:
            asyncio.CancelledError: the caller is gone.

        """
        if self._is_sending:
            self._taken = self._loop.create_future()
            await self._taken
        if self.is_gone or self._is_answered:
            self.is_gone = True
            raise asyncio.CancelledError

    def _flush_soon(self) -> None:
        """Send what is held unless another message comes at once: then C-core writes them together."""
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if self._held is not None and not self._is_sending and not self._is_answered:
            self._send_held()

    def _send_held(self, flags: int = 0) -> None:
        self._start((*self._headers(), self._held_operation(flags)))

    def _held_operation(self, flags: int = 0) -> Any:
        assert self._held is not None
        (message, own), self._held = self._held, None
        return cygrpc.SendMessageOperation(message, own | flags)

    def _start(self, operations: tuple[Any, ...]) -> None:
        self._is_sending = True
        if self._sent is None:
            self._sent = Sent(self._has_sent)
        if self._call.start_server_batch(operations, self._sent):
            self._has_sent(False)  # noqa: FBT003 (as C-core would)
        else:
            self._loop.waiter.look()

    def _has_sent(self, is_sent: bool) -> None:  # noqa: FBT001 (C-core's)
        self._is_sending = False
        self.is_gone |= not is_sent
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)
        elif self._held is not None and is_sent:
            self._flush_soon()

    def _headers(self, headers: tuple[tuple[str, str | bytes], ...] = ()) -> tuple[Any, ...]:
        if self._has_headers:
            return ()
        self._has_headers = True
        compression = self._context.compression
        if compression is not None:
            name = cygrpc.GRPC_COMPRESSION_REQUEST_ALGORITHM_MD_KEY
            headers = ((name, cygrpc._COMPRESSION_METADATA_STRING_MAPPING[compression]), *headers)  # noqa: SLF001
        return (cygrpc.SendInitialMetadataOperation(headers, 0) if headers else _HEADERS,)

    def _write_flags(self) -> int:
        flags, self._context.write_flags = self._context.write_flags, 0
        return flags

    @override
    async def answer(self, status: grpc.Status) -> None:
        if self._is_answered:
            return
        if not self._has_received:
            await self._let_the_message_come()
        if self._is_answered:  # meanwhile
            return
        code, details = status.code.value[0], status.details
        try:
            async with asyncio.timeout(_STALLED):
                await self._quiet(self._writing())
        except (TimeoutError, asyncio.CancelledError):  # whoever does not read would never get it
            self._is_answered = True
            self._call.cancel(code, details)
            self._forget()
            return
        trailers = tuple(status.trailing_metadata or ())
        self._end(None, cygrpc.SendStatusFromServerOperation(trailers, code, details, 0))
        left = asyncio.Event()
        self.when_left(left.set)
        await left.wait()

    async def _let_the_message_come(self) -> None:
        """Wait a moment for the first message: grpc.aio's client makes INTERNAL of a status before it."""
        with suppress(TimeoutError, asyncio.CancelledError):
            if not self._is_receiving:
                self._receive()
            self._overtaken = self._loop.create_future()
            async with asyncio.timeout(_OVERTAKING):
                await self._overtaken

    async def _quiet(self, turn: asyncio.Lock) -> None:
        """Wait until nothing is being sent any more, and keep it so.

        Raises:
            asyncio.CancelledError: the caller is gone.

        """
        await turn.acquire()
        await self._room()

    def _end(self, message: bytes | None, status: Any) -> None:
        """Send the last message and the status in one batch."""
        operations = [*self._headers()]
        self._is_answered = True
        if self._turn is not None and self._turn.locked():
            self._turn.release()  # other tasks that write are told that the call is over
        if self._held is not None:
            operations.append(self._held_operation())
        elif message is not None:
            operations.append(cygrpc.SendMessageOperation(message, self._context.write_flags))
        operations.append(self._with_trailers(status) if self._context.has_trailers else status)
        if not self._is_watched:
            operations.append(cygrpc.ReceiveCloseOnServerOperation(0))
        self._loop.waiter.put_off(self._call, operations, self._ended)

    def _with_trailers(self, status: Any) -> Any:
        if status is not _OK:
            return status
        context = self._context
        return cygrpc.SendStatusFromServerOperation(context.trailing_metadata(), 0, context.details(), 0)

    def _ended(self, _event: Any) -> None:
        self._forget()

    def _forget(self) -> None:
        """Let C-core free its stream, whoever still holds this object; leave no work for the collector."""
        self._is_answered = True
        self._call = self._sent = None
        if self._task is not None and self._task.done():
            self._task = None
        left, self._left = self._left, []
        for callback in left:
            callback()
        self._context.forget()

    @override
    def interrupt(self) -> None:
        if self._task is not None:
            self._task.cancel()

    @override
    def when_left(self, callback: Callable[[], None]) -> None:
        self._left.append(callback)
