"""Measures all ways in rounds, one after the other, so that a busy moment of the machine hits all."""

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from grpc_common.testing.certificates import CertificateDirectory
from tools.bench.loads import Load, LoadError, check, run
from tools.bench.processes import NotServingError, Server, running
from tools.bench.results import Result, Spread
from tools.bench.ways import BASE, Way

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass
class Turn:
    """What one way did under one load in one round."""

    cpu: float
    """Seconds of the server's CPU time a message."""

    rate: float
    """Messages a second."""

    latencies: list[float] = field(repr=False)


_WARM_UP = 0.1
"""Seconds of each load for each server before anything is measured."""

_LONGEST = 20
"""Seconds in which any server answers something."""

type Turns = dict[tuple[Way, Load], list[Turn]]
type Track = Callable[[list[tuple[Load, Way]]], Iterable[tuple[Load, Way]]]


def measure(
    ways: list[Way], loads: list[Load], rounds: int, seconds: float, track: Track
) -> tuple[list[Result], dict[str, str]]:
    """Return the results, and {way: why not} of those that can't be had here.

    `track` yields the turns that it gets, and may show how far they are.

    Raises:
        LoadError: a load could not be made, or a server did not answer it.

    """
    check()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificates = CertificateDirectory(folder / "certificates", trustme.CA())
        servers, skipped = _start(stack, ways, str(certificates.path))
        for load in loads:  # until all is imported and cached
            for server in servers.values():
                run(load, server.port, _WARM_UP)
        turns: Turns = {(way, load): [] for way in servers for load in loads}
        for load, way in track(list(_order(list(servers), loads, rounds))):
            turns[way, load].append(_turn(servers[way], load, seconds))
    return [_result(way, load, turns) for load in loads for way in servers], skipped


def _start(stack: ExitStack, ways: list[Way], certificates: str) -> tuple[dict[Way, Server], dict[str, str]]:
    servers, skipped = {}, {}
    for way in ways:
        try:
            servers[way] = stack.enter_context(running(way, certificates))
        except NotServingError as error:
            skipped[way.name] = str(error)
    return servers, skipped


def _order(ways: list[Way], loads: list[Load], rounds: int) -> Iterator[tuple[Load, Way]]:
    """Begin each round with another way, so that no way always comes after the same one's garbage."""
    for number in range(rounds):
        first = number % len(ways)
        for load in loads:
            for way in ways[first:] + ways[:first]:
                yield load, way


def _turn(server: Server, load: Load, seconds: float) -> Turn:
    seconds += load.settling
    handled, cpu = server.handled(), server.cpu()
    answers = run(load, server.port, seconds)
    cpu = server.cpu() - cpu
    handled = server.handled() - handled
    if not handled and seconds < _LONGEST:  # on a busy machine it took as long to connect
        return _turn(server, load, 2 * seconds)
    if handled < max(answers.calls * load.messages, 1):
        raise LoadError(f"{load.name}: the server made {handled} messages, for {answers.calls} calls")
    return Turn(cpu / handled, handled / seconds, answers.latencies)


def _result(way: Way, load: Load, turns: Turns) -> Result:
    own = turns[way, load]
    (base,) = [turns[other] for other in turns if other[0].name == BASE and other[1] == load]
    return Result(
        load=load.name,
        way=way.name,
        group=way.group,
        unit=load.unit,
        cpu=statistics.median(turn.cpu for turn in own),
        rate=statistics.median(turn.rate for turn in own),
        ratio=Spread.of([turn.cpu / of_base.cpu for turn, of_base in zip(own, base, strict=True)]),
        latencies=quantiles(sorted(latency for turn in own for latency in turn.latencies)),
    )


def quantiles(latencies: list[float]) -> dict[str, float]:
    """Return those of sorted `latencies` that at least one call lies beyond."""
    count = len(latencies)
    return {
        name: latencies[int(count * share)] for name, share in QUANTILES.items() if count * (1 - share) >= 1
    }
