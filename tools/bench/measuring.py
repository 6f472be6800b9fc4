"""Measures all ways in rounds, one after the other, so that a busy moment of the machine hits all."""

import statistics
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from grpc_common.testing.certificates import CertificateDirectory
from tools.bench.loads import Load, LoadError, check, run
from tools.bench.plan import Plan
from tools.bench.processes import NotServingError, Server, running
from tools.bench.results import Result, Spread
from tools.bench.ways import BASE, Way
from tools.pages.percentiles import percentile

_PERCENTILES = {50: 2, 99: 100, 99.9: 1000}
"""Each with how many calls there are if one lies beyond it."""


@dataclass
class Turn:
    """What one way did under one load in one round."""

    cpu: float
    """Seconds of the server's CPU time a message."""

    rate: float
    """Messages a second."""

    latencies: list[float] = field(repr=False)


_WARM_UP = 0.05
"""Seconds of each load for each server before anything is measured."""

_LONGEST = 20
"""Seconds in which any server answers something."""

type Turns = dict[tuple[Way, Load], list[Turn]]
type Track = Callable[[list[Task]], Iterable[Task]]
type Task = tuple[Way, Load]
"""What has its turn in each round."""


def measure(plan: Plan, track: Track) -> tuple[list[Result], dict[str, str]]:
    """Return the results, and {way: why not} of those that can't be had here.

    `track` yields the turns that it gets, and may show how far they are.

    Raises:
        LoadError: a load could not be made, or a server did not answer it.

    """
    check()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificates = CertificateDirectory(folder / "certificates", trustme.CA())
        servers, skipped = _start(stack, list(dict(plan.tasks)), str(certificates.path))
        tasks = [task for task in plan.tasks if task[0] in servers]
        for way, load in tasks:  # until all is imported and cached
            run(load, servers[way].port, _WARM_UP)
        turns: Turns = {task: [] for task in tasks}
        for way, load in track(_order(tasks, plan.rounds)):
            turns[way, load].append(_turn(servers[way], load, plan.seconds))
    return [_result(way, load, turns) for way, load in tasks], skipped


def _start(stack: ExitStack, ways: list[Way], certificates: str) -> tuple[dict[Way, Server], dict[str, str]]:
    """Start the servers of `ways`, and a bare one that is called by those that relay."""
    servers: dict[Way, Server] = {}
    skipped = {}
    upstream = stack.enter_context(running(Way(BASE, ""), certificates, 0)).port
    for way in ways:
        try:
            servers[way] = stack.enter_context(running(way, certificates, upstream))
        except NotServingError as error:
            skipped[way.name] = str(error)
    return servers, skipped


def _order(tasks: list[Task], rounds: int) -> list[Task]:
    """Begin each round with another way, so that no way always comes after the same one's garbage."""
    loads: dict[Load, list[Task]] = {}
    for task in tasks:
        loads.setdefault(task[1], []).append(task)
    order = []
    for number in range(rounds):
        for of_load in loads.values():
            first = number % len(of_load)
            order += of_load[first:] + of_load[:first]
    return order


def _turn(server: Server, load: Load, seconds: float) -> Turn:
    seconds += load.settling
    handled, cpu = server.handled(), server.cpu()
    with server.on(load.cores):
        answers = run(load, server.port, seconds)
    cpu = server.cpu() - cpu
    handled = server.handled() - handled
    if (
        not handled and not answers.calls and seconds < _LONGEST
    ):  # on a busy machine it took as long to connect
        return _turn(server, load, 2 * seconds)
    if handled < max(answers.calls * load.messages, 1):
        raise LoadError(f"{load.name}: the server made {handled} messages, for {answers.calls} calls")
    if load.messages > 1:  # a server may make messages long before it sends them
        handled = min(handled, max(answers.messages, 1))
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
        latencies=percentiles([latency for turn in own for latency in turn.latencies]),
        series=load.series,
    )


def percentiles(latencies: list[float]) -> dict[str, float]:
    """Return p50, p99 and p99.9, as far as at least one call lies beyond."""
    return {
        f"p{percent}": percentile(latencies, percent)
        for percent, least in _PERCENTILES.items()
        if len(latencies) >= least
    }
