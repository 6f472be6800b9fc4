"""Compares what a unary call costs with grpc_common and with plain grpc.aio.

One process serves, this one calls: CALLERS callers, each with the next call as soon as the last
one has ended. All ways take turns, again and again, so that a busy moment hits all. With fewer
processors than processes that want them, the CPU time of a call tells more than calls a second.
"""

import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from rich.bar import Bar
from rich.console import Console
from rich.progress import track
from rich.table import Table

import grpc_common
from tools.bench.processes import process
from tools.pages.output_file import OutputFile, write
from tools.pages.percentiles import percentile

SERVICE = "bench.Echo"
ECHO, CPU_TIME = f"/{SERVICE}/Echo", f"/{SERVICE}/CpuTime"
MESSAGE = bytes(100)
DEADLINE = 30
"""Seconds; every call has one, as it has with grpc_common."""

PLAIN = "plain grpc.aio"

type _Call = Callable[..., Awaitable[bytes]]

# What is measured as a server: its name, and the settings that grpc_common gets.
SERVERS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    "log level info": {"logging": {"level": "info"}},
    "log level warning": {"logging": {"level": "warning"}},
    "... and tracing, rate 0": {
        "logging": {"level": "warning"},
        "tracing": {"enabled": True, "service_name": "bench", "sampling_rate": 0},
    },
}


@dataclass(frozen=True)
class Way:
    """One way to make calls: a server, and a client of it."""

    side: str
    """Which of the two is compared: "server" or "client"."""

    name: str
    server: str
    open_channel: Callable[[str], AbstractAsyncContextManager[grpc.aio.Channel]]


WAYS = [
    *(Way("server", name, name, grpc.aio.insecure_channel) for name in SERVERS),
    Way("client", PLAIN, PLAIN, grpc.aio.insecure_channel),
    Way("client", "grpc_common.channel", PLAIN, grpc_common.channel),
]


@dataclass
class Figures:
    """What was counted in one turn of one way."""

    calls_per_second: float
    p50: float
    """The median of the calls' seconds."""

    p99: float
    cpu: float
    """Seconds of CPU time a call, of the process that has the side which is compared."""


async def _echo(request: bytes, _context: object) -> bytes:
    return request


async def _cpu_time(_request: bytes, _context: object) -> bytes:
    return str(time.process_time()).encode()


def _add(_servicer: None, server: grpc.aio.Server) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "CpuTime": grpc.unary_unary_rpc_method_handler(_cpu_time),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])


def _serve(name: str, started: Callable[[int], None], wait: Callable[[], object]) -> None:
    """Serve until `wait` returns, and tell `started` the port."""
    asyncio.run(_serve_until(SERVERS[name], started, wait))


async def _serve_until(
    settings: dict[str, Any] | None, started: Callable[[int], None], wait: Callable[[], object]
) -> None:
    async with _plain() if settings is None else _with_grpc_common(settings) as number:
        started(number)
        await asyncio.to_thread(wait)


@asynccontextmanager
async def _plain() -> AsyncIterator[int]:
    server = grpc.aio.server()
    _add(None, server)
    # Both servers answer the health check of grpc_common.channel.
    healthy = health.aio.HealthServicer()
    await healthy.set("", HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    number = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield number
    await server.stop(None)


@asynccontextmanager
async def _with_grpc_common(settings: dict[str, Any]) -> AsyncIterator[int]:
    config = grpc_common.ServerConfig.model_validate(
        {"server": {"port": 0, "drain": {"delay": "0s"}}, "metrics": {"port": 0}} | settings
    )
    grpc_common.configure_logging(config.logging.level, "json")
    server = grpc_common.Server(config)
    server.add(None, _add)
    async with server.serving() as number:
        yield number


async def _measure(way: Way, port: int, callers: int, seconds: float) -> Figures:
    async with way.open_channel(f"127.0.0.1:{port}") as channel:
        echo: _Call = channel.unary_unary(ECHO)
        cpu_time: _Call = channel.unary_unary(CPU_TIME)

        async def cpu() -> float:
            return (
                time.process_time() if way.side == "client" else float(await cpu_time(b"", timeout=DEADLINE))
            )

        await _load(echo, callers, seconds / 10)  # until all is connected, imported and cached
        before = await cpu()
        start = time.perf_counter()
        durations = await _load(echo, callers, seconds)
        elapsed = time.perf_counter() - start
        used = await cpu() - before
    return Figures(
        calls_per_second=len(durations) / elapsed,
        p50=percentile(durations, 50),
        p99=percentile(durations, 99),
        cpu=used / len(durations),
    )


async def _load(echo: _Call, callers: int, seconds: float) -> list[float]:
    """Return how many seconds each call took."""
    end = time.perf_counter() + seconds
    durations = []

    async def call() -> None:
        now = time.perf_counter()
        while not durations or now < end:
            start = now
            await echo(MESSAGE, timeout=DEADLINE)
            now = time.perf_counter()
            durations.append(now - start)

    await asyncio.gather(*(call() for _ in range(callers)))
    return durations


@dataclass
class Result(Figures):
    """The medians of one way over all rounds."""

    side: str
    name: str
    ratio: float
    """Its calls a second, compared with those of the plain way in the same round."""

    cpu_ratio: float
    """The same of its CPU time."""


def _results(rounds: list[dict[Way, Figures]]) -> list[Result]:
    return [_result(way, rounds) for way in WAYS]


def _result(way: Way, rounds: list[dict[Way, Figures]]) -> Result:
    plain = next(other for other in WAYS if other.side == way.side)

    def median(value: Callable[[dict[Way, Figures]], float]) -> float:
        return statistics.median(map(value, rounds))

    return Result(
        side=way.side,
        name=way.name,
        calls_per_second=median(lambda turn: turn[way].calls_per_second),
        p50=median(lambda turn: turn[way].p50),
        p99=median(lambda turn: turn[way].p99),
        cpu=median(lambda turn: turn[way].cpu),
        ratio=median(lambda turn: turn[way].calls_per_second / turn[plain].calls_per_second),
        cpu_ratio=median(lambda turn: turn[way].cpu / turn[plain].cpu),
    )


def _table(results: list[Result]) -> Table:
    table = Table("side", "way", "calls/s", "", "", "p50", "p99", "CPU/call", "")
    most = max(result.calls_per_second for result in results)
    for result in results:
        table.add_row(
            result.side,
            result.name,
            f"{result.calls_per_second:,.0f}",
            f"{result.ratio:.2f}x",
            Bar(most, 0, result.calls_per_second, width=16),
            f"{result.p50 * 1000:.2f} ms",
            f"{result.p99 * 1000:.2f} ms",
            f"{result.cpu * 1_000_000:.0f} µs",
            f"{result.cpu_ratio:.2f}x",
        )
    return table


def _run(callers: int, seconds: float, rounds: int) -> list[Result]:
    with ExitStack() as stack:
        ports = {name: stack.enter_context(process(_serve, name))[1] for name in SERVERS}
        figures: list[dict[Way, Figures]] = [{} for _ in range(rounds)]
        turns = [(turn, way) for turn in figures for way in WAYS]
        for turn, way in track(turns, console=Console(stderr=True), description="measuring"):
            turn[way] = asyncio.run(_measure(way, ports[way.server], callers, seconds))
    return _results(figures)


@click.command(help=__doc__)
@click.option("--callers", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Medians are shown.")
@click.option("--json", "file", type=OutputFile(), help="Where to write the figures; times are in seconds.")
def main(callers: int, seconds: float, rounds: int, file: Path | None) -> None:
    """Measure each way in turn, print the table, and write the file."""
    results = _run(callers, seconds, rounds)
    console = Console(width=None if Console().is_terminal else 120)
    versions = f"grpcio {grpc.__version__}, Python {platform.python_version()}"
    processors = f"{os.process_cpu_count()} processors"
    console.print(
        f"{callers} callers, {len(MESSAGE)} bytes, {rounds} x {seconds} s, {processors}, {versions}"
    )
    console.print(_table(results))
    if file:
        setting = {"callers": callers, "seconds": seconds, "rounds": rounds, "grpcio": grpc.__version__}
        write(file, json.dumps(setting | {"results": [asdict(result) for result in results]}, indent=2))


if __name__ == "__main__":
    main(prog_name="calls")
