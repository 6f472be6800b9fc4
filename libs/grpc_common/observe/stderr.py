"""Makes lines of the log of all else that a process writes to stderr: C-core's own, above all.

Descriptor 2 becomes a pipe that a thread reads all the time, and the log is written to what it was before.
The pipe does not block, and what finds no room in it is lost: C-core may write while it holds the GIL,
which the reader needs. `sys.stderr` does not go through the pipe; a `print` never waits and never fails.

After a fatal signal no Python code runs: faulthandler writes its stacks to the log as they are, and the
line with which C-core aborts may be lost in the pipe.
"""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, override

import structlog

from grpc_common.core.errors import printable
from grpc_common.observe import writer
from grpc_common.observe.logs import Level, is_json, is_logged, is_set_up, rate_limit
from grpc_common.observe.rendering import MAX_VALUE, cut

log = structlog.get_logger()

_STDERR = 2

_PIPE_SIZE = 2**20
"""Bytes: the most that Linux gives without privileges; holds 10 000 lines until the reader has the GIL."""

_C_CORE = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ ([^\s\]]{1,80}:\d+)\] (.*)")
"""A line as absl writes it: `E1128 04:03:08.239784   11777 hpack_parser.cc:1048] Error parsing ...`."""

_LEVELS: dict[str, Level] = {"I": "info", "W": "warning", "E": "error", "F": "error"}

_LAST = b"\0last"
"""A line that stands for the end of what was written so far."""


def catch_stderr() -> None:
    """Have all that is written to stderr from now on come out as lines of the log.

    It does nothing where somebody else has done the like, as pytest does, and where the program has set up
    structlog itself: its lines may go to descriptor 2, and would come back as lines of the log for ever.
    """
    global _caught  # noqa: PLW0603 (there is one descriptor 2)
    if _caught is not None or sys.stderr is not sys.__stderr__ or _is_another_file() or not is_set_up():
        return
    _caught = _CaughtStderr()
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    atexit.register(_caught.release)
    os.register_at_fork(after_in_child=_caught.leave_to_parent)


def flush(timeout: float = writer.EXIT_TIMEOUT) -> bool:
    """Wait until what was written to stderr so far has left, `timeout` seconds at most; tell if it has."""
    end = time.monotonic() + timeout
    if _caught:
        _caught.flush(timeout)
    return writer.lines.flush(max(0.0, end - time.monotonic()))


_caught: _CaughtStderr | None = None


def _replace_python_stderr(*, in_child: bool = False) -> _PythonStderr:
    """Have `sys.stderr` write to the log; the object stays the same, since handlers of logging hold it."""
    raw = _PythonStderr(in_child=in_child)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)
    else:
        io.TextIOWrapper.__init__(sys.stderr, raw, "utf-8", "backslashreplace", write_through=True)  # type: ignore[arg-type]  # it is one
    return raw


def _is_another_file() -> bool:
    """Return whether stderr was closed when the process began, and its number is in use again."""
    if sys.__stderr__ is not None:
        return False
    try:
        os.fstat(_STDERR)
    except OSError:
        return False
    return True


class _CaughtStderr:
    """The pipe in place of descriptor 2, and the thread that reads it."""

    def __init__(self) -> None:
        self._stderr = _take_away()
        writer.lines.descriptor = self._stderr
        if self._stderr is not None:
            faulthandler.enable(self._stderr)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        with suppress(OSError, AttributeError):  # it is Linux that has it, and others have used it up
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        os.dup2(self._writer, _STDERR)
        self._passed = threading.Event()
        self._is_parents = False
        self._python_stderr = _replace_python_stderr()
        threading.Thread(target=self._read, name="stderr reader", daemon=True).start()

    def flush(self, timeout: float) -> None:
        """Wait for the lines that are in the pipe."""
        if self._is_parents:
            return
        end = time.monotonic() + timeout
        self._passed.clear()
        while time.monotonic() < end:
            with suppress(BlockingIOError):
                os.write(self._writer, b"\n" + _LAST + b"\n")
                break
            time.sleep(0.001)
        self._passed.wait(max(0, end - time.monotonic()))

    def release(self) -> None:
        """Give descriptor 2 back: after the end of Python nobody reads the pipe."""
        self._python_stderr.end()
        if self._stderr is not None:
            os.dup2(self._stderr, _STDERR)
        self.flush(writer.EXIT_TIMEOUT)

    def leave_to_parent(self) -> None:
        """Be the pipe of a forked process, which the parent's thread reads."""
        self._is_parents = True
        # Another thread may have held the lock of the old one.
        self._python_stderr = _replace_python_stderr(in_child=True)

    def _read(self) -> None:
        lines = _Splitter(self._take)
        while True:
            lines.feed(os.read(self._reader, 2**16))

    def _take(self, line: bytes) -> None:
        if line == _LAST:
            self._passed.set()
        elif line:
            _log_native(line.decode(errors="backslashreplace"))


def _take_away() -> int | None:
    """Return a duplicate of stderr; None if it is closed, and then keep any other file from its number."""
    try:
        return os.dup(_STDERR)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != _STDERR:
            os.dup2(null, _STDERR)
            os.close(null)
        return None


class _Splitter:
    """Cuts what is fed to it into lines, and a line without an end into bounded ones."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > MAX_VALUE:
            lines.append(rest)
            rest = b""
        self._rest = rest
        for line in lines:
            with suppress(Exception):  # the thread has to read on
                self._take(line.rstrip(b"\r"))

    def end(self) -> None:
        """Take what has come of the last line."""
        if self._rest:
            self.feed(b"\n")


class _PythonStderr(io.RawIOBase):
    """Where `sys.stderr` writes to."""

    def __init__(self, *, in_child: bool) -> None:
        self._in_child = in_child
        self._lines = _Splitter(lambda line: _log_printed(line.decode(errors="backslashreplace")))
        self._lock = threading.RLock()

    @override
    def writable(self) -> bool:
        return True

    @override
    def fileno(self) -> int:
        return _STDERR

    @override
    def write(self, data: Any, /) -> int:
        with self._lock:
            self._lines.feed(bytes(data))
        return len(data)

    @override
    def flush(self) -> None:
        """Wait in a forked process alone: multiprocessing's flush here, and end by os._exit."""
        if self._in_child:
            self.end()
            writer.lines.flush()

    def end(self) -> None:
        """Log what has come of the last line."""
        with self._lock:
            self._lines.end()


def _log_native(line: str) -> None:
    """Log what is written to the descriptor itself, by C-core or any other code that is not Python's."""
    match = _C_CORE.fullmatch(line)
    level, source, text = match.groups() if match else ("E", "", line)
    if is_logged(_LEVELS[level]) and rate_limit.admits(source or "stderr"):
        fields = {"logger": "grpc.core", "source": source} if match else {"logger": "stderr"}
        getattr(log, _LEVELS[level])(text, **fields)


def _log_printed(line: str) -> None:
    """Log what Python code prints; a person gets it as it is, but for what would write to the terminal."""
    if is_json() and is_set_up():
        if line:
            log.error(line, logger="stderr")
    else:
        writer.lines.add(printable(cut(line)))


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("uncaught exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return
    name = args.thread.name if args.thread else None
    exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
    log.error("uncaught exception in a thread", thread=name, exc_info=exc_info)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
    log.error(args.err_msg or "exception ignored", object=repr(args.object), exc_info=exc_info)
