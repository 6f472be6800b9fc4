"""What is measured: peers, and grpc_common on both engines with more and more switched on."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

SERVICE = "bench.Echo"
STREAM_MESSAGES = 1000
"""How many messages the method Stream answers with, each what the request was."""

BASE = "grpc.aio"
"""The way that all others are compared with: a server of grpc.aio and nothing else."""

_OFF: dict[str, Any] = {"logging": {"level": "warning"}, "metrics": {"enabled": False}}
_METRICS: dict[str, Any] = {"logging": {"level": "warning"}, "metrics": {"port": 0}}
_LINE: dict[str, Any] = {"logging": {"level": "info"}, "metrics": {"port": 0}}
_TRACES: dict[str, Any] = _LINE | {
    "tracing": {"enabled": True, "service_name": "bench", "sampling_rate": 0.1}
}

# Each has what the ones before it have. Limits, deadlines and health can't be switched off.
_STEPS: dict[str, dict[str, Any]] = {
    "all off": _OFF,
    "metrics": _METRICS,
    "+ access line": _LINE,
    "+ 10 % traces": _TRACES,
    "+ mTLS": _TRACES,
}

type Engine = Literal["grpc-aio", "completion-queue"]


@dataclass(frozen=True)
class Way:
    """One way to serve; each is a process of its own."""

    name: str

    group: str
    """What has one colour in the charts."""

    settings: dict[str, Any] | None = field(default=None, compare=False)
    """The settings of grpc_common; None for a peer."""

    engine: Engine = "grpc-aio"

    mutual_tls: bool = False

    relays: bool = False
    """Whether it has the method Relay, which calls another service and so keeps a channel."""

    methods: int = 0
    """How many methods it serves that nobody calls."""


def _ours(engine: Engine) -> list[Way]:
    return [
        Way(f"{engine}: {step}", f"grpc_common, {engine}", settings, engine, step == "+ mTLS")
        for step, settings in _STEPS.items()
    ]


# A further peer is a line here, and a function in peers.py or other_peers.py.
WAYS = [
    Way(BASE, "peers"),
    Way("grpc.aio on uvloop", "peers"),
    Way("grpc.server, threaded", "peers"),
    Way("grpclib", "peers"),
    Way("connect-python on hypercorn", "peers"),
    Way("connect-python on pyvoy", "peers"),
    Way("grpc-go", "peers"),
    *_ours("grpc-aio"),
    *_ours("completion-queue"),
]

_CHOSEN = (BASE, "grpc-aio: + access line", "completion-queue: + access line")
"""What is measured when a load is about something else than what a server has switched on."""

CHOSEN = [way for way in WAYS if way.name in _CHOSEN]
RELAYS = [
    replace(way, relays=True)
    for way in WAYS
    if way.name in (*_CHOSEN, "grpc.aio on uvloop", "completion-queue: all off")
]
METHODS = 1000
WITH_MANY_METHODS = [replace(way, methods=METHODS) for way in CHOSEN]

QUICK = [way for way in WAYS if way.group == "peers" or way.name.endswith((": all off", "access line"))]
"""What --quick measures."""
