"""Writes the log's lines from a thread of its own, so that no caller waits for whoever reads them.

A caller only puts a line into a queue that is bounded. What finds no room there, and what can't be
written, is dropped and counted; once lines can be written again, one of them tells how many were dropped.
"""

import atexit
import errno
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

MAX_LINES = 10_000
"""Lines that may wait to be written: what a busy server logs in about a second."""

MAX_CHARACTERS = 4 * 2**20
"""Characters that may wait to be written, whatever the number of their lines."""

EXIT_TIMEOUT = 1.0
"""Seconds that the end of the process waits for the last lines to be written."""

FULL = "full"
"""Why a line was dropped that found no room in the queue; other reasons are names of errno."""

_GATHERING = 0.05
"""Seconds between a line and its writing, in which others gather: each wake takes the GIL from the calls."""

_TICK = 1.0
"""Seconds between two looks at whether there are notices."""


type Line = str | Callable[[], str]


class LineWriter:
    """A queue of lines, and the thread that writes them to a descriptor.

    Args:
        descriptor: where lines are written; None drops them all.

    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        self.notices: Callable[[int], list[str]] = lambda _dropped: []
        """Returns the lines that the writer itself has to tell; gets the number of lines newly dropped."""
        self.dropped = {FULL: 0}
        """How many lines were dropped, by reason."""
        self._reported = 0
        self._exit_deadline: float | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin with an empty queue and no thread; in a forked process these are the parent's."""
        # Signal handlers and destructors, which may log, run between any two statements of the same thread.
        self._lock = threading.RLock()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_rung = False
        self._lines: list[Line] = []
        self._characters = 0
        self._waiting: list[threading.Event] = []
        self._rest_of_line = b""
        self._thread: threading.Thread | None = None

    def add(self, line: Line, size: int = 0) -> None:
        """Have `line`, which has no newline at its end, written soon. Never waits and never raises.

        Args:
            line: the text, or what makes it when it is written, and can not fail.
            size: its characters, about; that of the text if 0.

        """
        if sys.is_finalizing():  # a destructor at the end of the interpreter, when no thread runs any more
            self._write_last(_text(line))
            return
        size = size or len(_text(line))
        with self._lock:
            if len(self._lines) >= MAX_LINES or self._characters + size > MAX_CHARACTERS:
                self.dropped[FULL] += 1
                return
            self._lines.append(line)
            self._characters += size
            if not self._is_rung or self._thread is None:
                self._ring()
        if self._exit_deadline is not None:
            # Nobody flushes any more: this is the end of the interpreter.
            self.flush(max(0.0, self._exit_deadline - time.monotonic()))

    def flush(self, timeout: float = EXIT_TIMEOUT) -> bool:
        """Wait until all lines so far are written or dropped, `timeout` seconds at most; tell if they are."""
        if self._thread is None:
            return True
        passed = threading.Event()
        with self._lock:
            self._waiting.append(passed)
            self._ring()
        return passed.wait(timeout)

    def finish(self) -> None:
        """Write the last lines at the end of the process, which does not wait long for a reader."""
        self._exit_deadline = time.monotonic() + EXIT_TIMEOUT
        self.flush(EXIT_TIMEOUT)

    def _write_last(self, line: str) -> None:
        """Write a line at once, unless its reader lets the process wait."""
        if self.descriptor is None:
            return
        data = (line + "\n").encode(errors="backslashreplace")
        with suppress(Exception):
            writable = select.poll()
            writable.register(self.descriptor, select.POLLOUT)
            # A pipe that can be written to takes PIPE_BUF bytes without waiting.
            while data and writable.poll(0):
                data = data[os.write(self.descriptor, data[: select.PIPE_BUF]) :]

    def _ring(self) -> None:
        self._is_rung = True
        self._bell.put(None)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends; the next line tries again
            self._thread = None

    def _run(self) -> None:
        while True:
            lines, passed = self._next_batch()
            written = bool(lines) and self._write(lines)
            self._write_notices(tell_dropped=written)
            for event in passed:
                event.set()

    def _next_batch(self) -> tuple[list[Line], list[threading.Event]]:
        """Return the next lines, none after a while without any, and whoever waits for their end."""
        with suppress(queue.Empty):
            self._bell.get(timeout=_TICK)
            if not self._waiting:  # whoever flushes rings again
                self._bell.get(timeout=_GATHERING)
        with self._lock:
            lines, self._lines = self._lines, []
            passed, self._waiting = self._waiting, []
            self._characters = 0
            self._is_rung = False
        return lines, passed

    def _write_notices(self, *, tell_dropped: bool) -> None:
        with self._lock:
            dropped = sum(self.dropped.values()) if tell_dropped else self._reported
        notices: list[str] = []
        with suppress(Exception):  # the thread has to go on
            notices = self.notices(dropped - self._reported)
        if notices and self._write(notices):
            self._reported = dropped

    def _write(self, lines: Sequence[Line]) -> bool:
        text = "\n".join([_text(line) for line in lines]) + "\n"
        data = self._rest_of_line + text.encode(errors="backslashreplace")
        written = 0
        try:
            while written < len(data):
                written += self._write_some(data[written:] if written else data)
        except OSError as error:
            self._drop(data, written, errno.errorcode.get(error.errno or 0, "unknown"))
            return False
        self._rest_of_line = b""
        return True

    def _write_some(self, data: bytes) -> int:
        if self.descriptor is None:
            raise OSError(errno.EBADF, "no stderr")
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            writable = select.poll()
            writable.register(self.descriptor, select.POLLOUT)
            writable.poll()
            return 0

    def _drop(self, data: bytes, written: int, reason: str) -> None:
        """Forget what is not written, save the rest of a line that has begun: it is finished first."""
        torn = data[written - 1 : written] != b"\n" if written else bool(self._rest_of_line)
        end = data.find(b"\n", written) + 1 if torn else written
        self._rest_of_line = data[written:end]
        with self._lock:
            self.dropped[reason] = self.dropped.get(reason, 0) + data.count(b"\n", end)


def _text(line: Line) -> str:
    return line if isinstance(line, str) else line()


def _stderr() -> int | None:
    """Return the descriptor of stderr; none if it was closed at the begin: 2 may be another file by now."""
    return None if sys.__stderr__ is None else 2


lines = LineWriter(_stderr())
"""The log of this process, on stderr."""

atexit.register(lines.finish)
os.register_at_fork(after_in_child=lines._begin)  # noqa: SLF001 (this is its module)
