"""What a server costs that is not called: its start, its memory, and connections that are idle."""

import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from grpc_common.testing.server import memory
from tools.bench.loads import LoadError
from tools.bench.processes import cpu_clock
from tools.bench.results import Result, Spread
from tools.bench.ways import BASE, Way

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client begins an HTTP/2 connection with: RFC 9113, 3.4, with SETTINGS that set nothing."""

_SETTINGS_ACK = bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])
"""Without it some servers close the connection after seconds."""

_PATIENCE = 30
"""Seconds that a server gets to answer."""

_AT_A_TIME = 100
"""Connections that are made at the same moment: fewer than any server's backlog."""

_OTHER_FILES = 500
"""Descriptors that server and benchmark get besides the connections."""

_IDLE = 0.5
"""Seconds in which the CPU time of idle connections is measured."""


@dataclass
class _Process:
    pid: int
    port: int

    @property
    def cpu(self) -> float:
        """Seconds of CPU time since it began."""
        return time.clock_gettime(cpu_clock(self.pid))

    @property
    def resident(self) -> int:
        """Bytes in memory."""
        return memory(self.pid, "VmRSS")

    @property
    def age(self) -> float:
        """Seconds since it began, to the hundredth."""
        ticks = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


@dataclass
class Rest:
    """What one server cost in one round."""

    start_cpu: float
    start: float
    resident: float
    connection_cpu: float
    connection_memory: float
    idle_cpu: float


def possible_connections(wanted: int) -> int:
    """Raise this process's limit of open files, and return how many of the connections it lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted + _OTHER_FILES if hard == resource.RLIM_INFINITY else min(hard, wanted + _OTHER_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))  # servers inherit it
    return max(min(wanted, limit - _OTHER_FILES), 1)


def _rest(way: Way, certificates: str, connections: int) -> Rest:
    """Start the server of `way`, leave `connections` idle, and end it.

    Raises:
        LoadError: it did not serve, or refused connections.

    """
    with _started(way, certificates) as server:
        with _connected(way, server.port, 1):  # it answers, so it serves
            age, cpu, resident = server.age, server.cpu, server.resident
        with _connected(way, server.port, connections):
            opened, grown = server.cpu - cpu, server.resident - resident
            before = server.cpu
            time.sleep(_IDLE)
            idle = server.cpu - before
    return Rest(cpu, age, resident, opened / connections, grown / connections, idle / _IDLE)


@contextmanager
def _started(way: Way, certificates: str) -> Iterator[_Process]:
    command = [sys.executable, "-m", "tools.bench.peers", way.name, certificates]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            told = process.stdout.readline().split()
            if not told:
                raise LoadError(f"{way.name}: the server ended before it served")
            yield _Process(pid=int(told[1]), port=int(told[0]))
        finally:
            process.stdin.close()


@contextmanager
def _connected(way: Way, port: int, connections: int) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            for first in range(0, connections, _AT_A_TIME):
                _connect(stack, port, min(_AT_A_TIME, connections - first))
        except OSError as error:
            raise LoadError(f"{way.name}: of {connections} connections: {error}") from error
        yield


def _connect(stack: ExitStack, port: int, count: int) -> None:
    opened = []
    for _ in range(count):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), _PATIENCE))
        connection.sendall(_PREFACE)
        opened.append(connection)
    for connection in opened:
        if not connection.recv(64):
            raise ConnectionError("the server closed one")
        connection.sendall(_SETTINGS_ACK)


def rested_all(
    ways: list[Way], rounds: int, connections: int, track: Callable[[list[Way]], Iterable[Way]]
) -> tuple[list[Result], dict[str, str]]:
    """Return the results, each measured so often, and {way: why not} of those that refused the connections.

    `track` yields the turns that it gets.
    """
    rests: dict[Way, list[Rest]] = {way: [] for way in ways}
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in track(ways * rounds):
            try:
                rests[way].append(_rest(way, folder, connections))
            except LoadError as error:
                skipped[f"{way.name}, start and idle connections"] = str(error)
    whole = {way: own for way, own in rests.items() if len(own) == rounds}
    return _results(whole, connections), skipped


def _results(rests: dict[Way, list[Rest]], connections: int) -> list[Result]:
    idle = f"{f'{connections:,}'.replace(',', ' ')} idle connections, each opened once"
    return [
        *_load(
            "start, until it serves",
            "start",
            rests,
            lambda rest: rest.start_cpu,
            {"seconds until it serves": lambda r: r.start, "MB resident then": lambda r: r.resident / 1e6},
        ),
        *_load(
            idle,
            "connection",
            rests,
            lambda rest: rest.connection_cpu,
            {
                "kB resident a connection": lambda r: r.connection_memory / 1e3,
                "% of a processor while all are idle": lambda r: r.idle_cpu * 100,
            },
        ),
    ]


type Figure = Callable[[Rest], float]


def _load(
    load: str, unit: str, rests: dict[Way, list[Rest]], cpu: Figure, others: dict[str, Figure]
) -> list[Result]:
    base = next((own for way, own in rests.items() if way.name == BASE), None)
    if base is None:
        return []
    return [
        Result(
            load=load,
            way=way.name,
            group=way.group,
            unit=unit,
            cpu=statistics.median(map(cpu, own)),
            rate=0,
            ratio=Spread.of([cpu(rest) / cpu(of_base) for rest, of_base in zip(own, base, strict=True)]),
            latencies={},
            others={name: statistics.median(map(figure, own)) for name, figure in others.items()},
        )
        for way, own in rests.items()
    ]
