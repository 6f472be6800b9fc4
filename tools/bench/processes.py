"""Servers as processes of their own: their ports, their CPU time, and how much they have answered."""

import ctypes
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

import grpc

from tools.bench.peers import SERVICE, serve
from tools.bench.relay import relay
from tools.bench.ways import Way

_PATIENCE = 30
"""Seconds that a server gets to answer a call of ours."""


class NotServingError(Exception):
    """A server can't be had here; the text says why."""


class Server:
    """A server that serves."""

    def __init__(self, pid: int, port: int, channel: grpc.Channel) -> None:
        self.port = port
        self._clock = _clock(pid)
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


def _clock(pid: int) -> int:
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return clock.value


@contextmanager
def running(way: Way, certificates: str) -> Iterator[Server]:
    """Run the server of `way`.

    Raises:
        NotServingError: it can't be had here.

    """
    with ExitStack() as stack:
        pid, port = stack.enter_context(process(serve, way, certificates))
        if way.mutual_tls:
            _, port = stack.enter_context(process(relay, port, certificates))
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        yield Server(pid, port, channel)


@contextmanager
def process(work: Callable[..., None], *arguments: object) -> Iterator[tuple[int, int]]:
    """Run `work(*arguments, started, wait)` in a process until the block ends; yield its id and its port.

    It calls `started` with the port, and ends when `wait` returns.

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
        assert process.pid
        yield process.pid, answer
    except EOFError:
        raise NotServingError(f"the process ended before it served: {work.__name__}") from None
    finally:
        ours.close()
        process.join()


def _work(work: Callable[..., None], arguments: tuple[object, ...], started: Connection) -> None:
    # The access log is rendered and written as ever, and goes nowhere; so do traces.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    try:
        work(*arguments, started.send, lambda: started.poll(None))
    except Exception as error:  # noqa: BLE001 (the parent says it)
        started.send(f"{type(error).__name__}: {error}")
