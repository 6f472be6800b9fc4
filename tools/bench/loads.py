"""What the servers are loaded with, by h2load: gRPC calls from a client that is not grpcio's."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.bench.ways import SERVICE, STREAM_MESSAGES

CLIENT = "h2load"
_GRACE = 60
"""Seconds that h2load may take longer than it was told to."""


@dataclass(frozen=True)
class Load:
    """One kind of load."""

    name: str
    connections: int
    streams: int
    """Calls at a time on each connection."""

    message: int = 100
    """Bytes of each message."""

    method: str = "Echo"
    messages: int = 1
    """How many a call is answered with; CPU time is told for each."""

    settling: float = 0
    """Seconds that a turn takes longer, since it takes long until all have connected, with TLS above all."""

    rate: int | None = None
    """Calls a second on each connection; as many as the server answers if None."""

    cores: int | None = None
    """On how many processors the server is; on all if None."""

    series: str = ""
    """What a row of loads is about, if it is one of such a row."""

    @property
    def unit(self) -> str:
        """What one unit of its CPU time is for."""
        return "message" if self.messages > 1 else "call"


LOADS = [
    Load("saturation: 4 connections x 16 streams", 4, 16),
    Load("paced: 1 000 calls/s on 4 connections", 4, 16, rate=250),
    Load("one connection, one call at a time", 1, 1),
    Load("200 connections, connecting included", 200, 1, settling=0.5),
    Load("streams of 1 000 messages, 4 at a time", 4, 1, method="Stream", messages=STREAM_MESSAGES),
    Load("messages of 100 kB, 4 x 4 calls", 4, 4, message=100_000),
]

RELAYING = [
    Load("a service that calls another: 4 x 16 calls", 4, 16, method="Relay"),
    Load("a service that calls another: one at a time", 1, 1, method="Relay"),
]

_CONNECTIONS = "CPU time by number of connections, 64 calls at a time"
CONNECTIONS = [
    Load(f"{count} connection{'s' * (count > 1)}", count, 64 // count, series=_CONNECTIONS)
    for count in (1, 8, 64)
]

_METHODS = "CPU time by number of methods"
FEW_METHODS, MANY_METHODS = (
    Load("3 methods", 4, 16, series=_METHODS),
    Load("1 000 more", 4, 16, series=_METHODS),
)

_CORES = "CPU time by number of processors that the server may use"
CORES = [Load("1 processor", 4, 16, cores=1, series=_CORES), Load("all processors", 4, 16, series=_CORES)]


@dataclass
class Answers:
    """What h2load saw."""

    calls: int
    """How many succeeded before the time was over."""

    messages: int
    """How many reached h2load, those of calls that were cut off when the time was over included."""

    latencies: list[float]
    """Seconds of each call, when the load is paced."""


class LoadError(Exception):
    """The load could not be made as told; the text says why."""


def check() -> None:
    """Raise LoadError if h2load is missing."""
    if shutil.which(CLIENT) is None:
        raise LoadError(
            f"{CLIENT} is not on PATH; it is in Debian's package nghttp2-client; BAZEL_MODE=closed brings it"
        )


def run(load: Load, port: int, seconds: float) -> Answers:
    """Load the server at `port` with `load`.

    Raises:
        LoadError: h2load failed, or calls did.

    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        ended = subprocess.run(
            _command(load, port, seconds, Path(folder)),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + _GRACE,
        )
        latencies = _latencies(log.read_text()) if load.rate else []
    return Answers(_succeeded(ended), _received(ended, load), latencies)


def _command(load: Load, port: int, seconds: float, folder: Path) -> list[str]:
    body = folder / "body"
    body.write_bytes(b"\0" + load.message.to_bytes(4) + bytes(load.message))
    options = {
        "--duration": f"{round(seconds * 1000)}ms",
        "--clients": load.connections,
        "--max-concurrent-streams": load.streams,
        "--data": body,
    }
    if load.rate:
        options |= {"--rps": load.rate, "--log-file": folder / "log"}
    headers = ["--header=te: trailers", "--header=content-type: application/grpc"]
    url = f"http://127.0.0.1:{port}/{SERVICE}/{load.method}"
    return [CLIENT, *(f"{name}={value}" for name, value in options.items()), *headers, url]


def _succeeded(ended: subprocess.CompletedProcess[str]) -> int:
    found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", ended.stdout)
    if not found or ended.returncode:
        raise LoadError(f"{CLIENT} ended with {ended.returncode}: {(ended.stderr or ended.stdout)[-500:]!r}")
    calls, *others = map(int, found.groups())
    if any(others):
        raise LoadError(f"of the calls of {CLIENT} {found[0]}")
    return calls


def _received(ended: subprocess.CompletedProcess[str], load: Load) -> int:
    found = re.search(r"traffic: .*\((\d+)\) data", ended.stdout)
    return int(found[1]) // (load.message + 5) if found else 0  # 5 bytes before each, as gRPC frames it


def _latencies(log: str) -> list[float]:
    """Take them from lines of start, HTTP status and microseconds."""
    rows = [line.split("\t") for line in log.splitlines()]
    return [int(microseconds) / 1e6 for _, status, microseconds, *_ in rows if status == "200"]
