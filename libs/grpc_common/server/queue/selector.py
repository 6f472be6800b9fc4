"""A selector that waits in C-core's completion queue."""

import os
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, NamedTuple, override

import structlog
from grpc._cython import cygrpc  # type: ignore[import-not-found, attr-defined, unused-ignore]  # compiled

from grpc_common.core.errors import StartError

log = structlog.get_logger()

TURN = 64
"""Completions that are taken, and run, in one turn of the loop, so that timers and sockets have theirs."""

_PAUSE = 0.0005
"""Seconds between two looks at the queue while the loop has other work: where a channel waits in a queue of
its own each look costs a change of threads, some 20 µs."""

_PUT_OFF = 0.001
"""Seconds that answers wait at most for those of other calls; a handler in between may take longer."""

_PATIENCE = 10
"""Seconds for C-core to answer on an empty queue, which takes it a millisecond."""

type Completion = Callable[[Any], None]
"""What is run with the event of an operation; it is the operation's tag."""


class Sent:
    """The completion of something that was sent; it is run when it is seen, not in the loop's next turn."""

    __slots__ = ("done",)

    def __init__(self, done: Callable[[bool], None]) -> None:
        self.done = done


class _Refused(NamedTuple):
    """Stands for the completion of a batch that C-core does not take."""

    tag: Completion


def _ignore(_event: Any) -> None:
    pass


def _descriptors_ready(_event: Any) -> None:
    """Stand for descriptors that can be read, as a tag."""


class QueueSelector(selectors.EpollSelector):
    """Waits for completions and, by a thread that is armed only while the loop blocks, for descriptors.

    Raises:
        StartError: C-core does not answer as it should.

    """

    def __init__(self) -> None:
        super().__init__()
        self.queue: Any = cygrpc.CompletionQueue()
        self.completed: list[Any] = []
        """The events that are to be run."""
        self.is_expecting = False
        """Whether something was begun that may be complete by now."""
        self._put_off: list[tuple[Any, Sequence[Any], Completion]] = []
        self._put_off_until = 0.0
        self._key: Any = None
        self._is_armed = False
        self._look_at = 0.0
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="grpc-descriptors")
        self._guard = select.epoll()
        self._end, self._ender = os.pipe()
        # A signal's handler may post while its thread does.
        self._posting = threading.RLock()
        self._server, self._parked = _parked_call(self.queue)
        self._guard.register(self._end, select.EPOLLIN)
        self._guard.register(super().fileno(), 0)
        self._watcher.start()

    def wake(self) -> None:
        """Have `select` return; from any thread."""
        self._post(_ignore)

    def _post(self, tag: Completion) -> None:
        with self._posting:
            if self._parked is not None:  # else the loop has just been closed
                self._parked.start_server_batch((), tag)

    def put_off(self, call: Any, operations: Sequence[Any], tag: Completion) -> None:
        """Begin a batch of a call behind the Python code of this turn; `tag` is run if C-core refuses it too.

        C-core and the kernel send together what comes together: half of what each answer costs by itself.
        """
        now = time.monotonic()
        if not self._put_off:
            self._put_off_until = now + _PUT_OFF
        self._put_off.append((call, operations, tag))
        if now > self._put_off_until:
            self.begin_put_off()

    def begin_put_off(self) -> None:
        """Begin the batches that were put off."""
        batches, self._put_off = self._put_off, []
        for call, operations, tag in batches:
            try:
                has_failed = call.start_server_batch(operations, tag)
            except Exception:  # one call must not end those behind it
                has_failed = True
                log.exception("an answer could not be sent")
            if has_failed:
                self.completed.append(_Refused(tag))

    def run_with(self, key: Any) -> None:
        """Report completions as an event of `key`."""
        self._key = key

    def _watch(self) -> None:
        own = super().fileno()
        while True:
            for descriptor, _ in self._guard.poll():
                if descriptor == self._end:
                    return
                if descriptor == own:
                    self._post(_descriptors_ready)

    @override
    def select(self, timeout: float | None = None) -> list[Any]:
        """Return what is ready, after `timeout` seconds at the latest."""
        if self._put_off:
            self.begin_put_off()
        ready = super().select(0)
        if self.completed or ready or (timeout is not None and timeout <= 0):
            if time.monotonic() > self._look_at:
                self.look()
        else:
            self._arm()
            end = None if timeout is None else time.time() + timeout
            if self._take(self.queue.poll(end)):
                ready = super().select(0)
        return [*ready, (self._key, selectors.EVENT_READ)] if self.completed else ready

    def look(self) -> None:
        """Take what has completed by now, up to a bound."""
        self._look_at = time.monotonic() + _PAUSE
        poll, completed = self.queue.poll, self.completed
        for _ in range(TURN - len(completed)):
            event = poll(0)
            tag = event.tag
            if tag is None:
                break
            if type(tag) is MethodType:  # most are
                completed.append(event)
            else:
                self._take(event)

    def _take(self, event: Any) -> bool:
        """Keep an event, and return whether it says that descriptors are ready."""
        tag = event.tag
        if type(tag) is Sent:
            tag.done(event.success)
        elif tag is _descriptors_ready:
            self._is_armed = False
            return True
        elif tag is not None:
            self.completed.append(event)
        return False

    def _arm(self) -> None:
        if not self._is_armed:
            self._is_armed = True
            self._guard.modify(super().fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    @override
    def close(self) -> None:
        """Let go of the queue."""
        if self._parked is not None:
            os.write(self._ender, b"\0")
            self._watcher.join()
            self._guard.close()
            os.close(self._end)
            os.close(self._ender)
            with self._posting:
                self._parked = None
            self._server.destroy()
            self._shut_down_queue()
        super().close()

    def _shut_down_queue(self) -> None:
        self.queue.shutdown()
        end = time.time() + _PATIENCE
        while time.time() < end:
            if self.queue.poll(time.time() + 1).completion_type == cygrpc.CompletionType.queue_shutdown:
                return


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """Return a frame of HTTP/2, RFC 9113, 4.1."""
    return struct.pack(">I", len(content) << 8 | kind) + struct.pack(">BI", flags, stream) + content


_A_CALL = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(4, 0, 0)  # SETTINGS
    # HEADERS with END_HEADERS; POST and http by their indices, other names and values by their lengths
    + _frame(1, 4, 1, b"\x83\x86\x04\x08/wake/Up\x01\x01a\x00\x02te\x08trailers\x0f\x10\x10application/grpc")
)
"""What a client sends to call /wake/Up."""


def _parked_call(queue: Any) -> tuple[Any, Any]:
    """Return a server and its call, which is cancelled: an empty batch on it completes at once.

    Raises:
        StartError: C-core does not answer as it should.

    """
    name = f"unix-abstract:grpc-common-{os.getpid()}-{id(queue):x}-{time.monotonic_ns():x}"
    server = cygrpc.Server((), False)  # noqa: FBT003 (grpcio's)
    server.register_completion_queue(queue)
    server.add_http2_port(name.encode())
    server.start()
    server.request_call(queue, queue, "called")
    with socket.socket(socket.AF_UNIX) as client:  # as a channel takes threads and a fifth of the start
        client.connect(name.replace("unix-abstract:", "\0"))
        client.sendall(_A_CALL)
        event = _await(queue, "called")
    # The closed connection lets it end; cancel_all_calls would have C-core log a line.
    server.shutdown(queue, "down")
    _await(queue, "down")
    return server, event.call


def _await(queue: Any, tag: str) -> Any:
    end = time.time() + _PATIENCE
    while time.time() < end:
        event = queue.poll(end)
        if event.tag == tag:
            return event
    raise StartError("server.engine: gRPC's completion queue does not answer; set it to grpc-aio")
