"""Servers as processes of their own: their ports, their CPU time, and how much they have answered."""

import ctypes
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import grpc

from tools.bench.peers import serve
from tools.bench.relay import relay
from tools.bench.ways import SERVICE, Way

_PATIENCE = 30
"""Seconds that a server gets to answer a call of ours."""


class NotServingError(Exception):
    """A server can't be had here; the text says why."""


class Server:
    """A server that serves."""

    def __init__(self, pid: int, port: int, channel: grpc.Channel) -> None:
        self.port = port
        self._pid = pid
        self._clock = cpu_clock(pid)
        self._handled = channel.unary_unary(f"/{SERVICE}/Handled")
        self._asked = 0

    def cpu(self) -> float:
        """Return the seconds of CPU time of all its threads, by the kernel's account."""
        return time.clock_gettime(self._clock)

    def handled(self) -> int:
        """Return how many messages it has answered with."""
        count = int(self._handled(b"", timeout=_PATIENCE, wait_for_ready=True)) - self._asked
        self._asked += 1  # the question is counted too
        return count

    @contextmanager
    def on(self, cores: int | None) -> Iterator[None]:
        """Keep all its threads on the first `cores` processors, within the block; on all if None."""
        allowed = os.sched_getaffinity(0)
        self._pin(set(sorted(allowed)[:cores]))
        try:
            yield
        finally:
            self._pin(allowed)

    def _pin(self, processors: set[int]) -> None:
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            with suppress(ProcessLookupError):  # the thread has ended
                os.sched_setaffinity(int(task.name), processors)


def cpu_clock(pid: int) -> int:
    """Return the number of the clock that counts the CPU time of a process."""
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return clock.value


@contextmanager
def running(way: Way, certificates: str, upstream: int) -> Iterator[Server]:
    """Run the server of `way`; `upstream` is the port that it calls if it relays.

    Raises:
        NotServingError: it can't be had here.

    """
    with ExitStack() as stack:
        pid, port = stack.enter_context(process(serve, way, certificates, upstream))
        if way.mutual_tls:
            _, port = stack.enter_context(process(relay, port, certificates))
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        yield Server(pid, port, channel)


@contextmanager
def process(work: Callable[..., None], *arguments: object) -> Iterator[tuple[int, int]]:
    """Run `work(*arguments, started, wait)` in a process until the block ends; yield its id and its port.

    It calls `started` with the port, and the process if that is another one, and ends when `wait` returns.

    Raises:
        NotServingError: it ended before, or raised an exception.

    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(work, arguments, theirs), daemon=True
    )
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
        if isinstance(answer, str):
            raise NotServingError(answer)
        yield answer
    except EOFError:
        raise NotServingError(f"the process ended before it served: {work.__name__}") from None
    finally:
        ours.close()
        process.join()


def _work(work: Callable[..., None], arguments: tuple[object, ...], started: Connection) -> None:
    # The access log is rendered and written as ever, and goes nowhere; so do traces.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"

    def serving(port: int, pid: int | None = None) -> None:
        started.send((pid or os.getpid(), port))

    try:
        work(*arguments, serving, lambda: started.poll(None))
    except Exception as error:  # noqa: BLE001 (the parent says it)
        started.send(f"{type(error).__name__}: {error}")
