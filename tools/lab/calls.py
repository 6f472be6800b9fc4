"""All calls of all clients, and which pod each of them has met."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from tools.lab.fleet.pod import Pod

# The trace id of a call is the number of its client and that of the call. It passes any proxy, and the pod's
# access log tells it.
_CALL = re.compile(rb'"peer": "([^"]*)".*"trace_id": "([0-9a-f]{8})([0-9a-f]{24})".*"event": "call"')


@dataclass(slots=True)
class Call:
    """A call as its client has seen it."""

    started: float
    """Seconds since the epoch."""

    latency: float
    """Seconds until the client had the status."""

    code: str
    details: str

    @property
    def failed(self) -> bool:
        """Whether the status was not OK."""
        return self.code != "OK"


@dataclass(slots=True)
class Attempt:
    """A call as a pod has seen it; one that was retried has met several."""

    pod: str
    peer: str
    """The other end of the connection, which is a proxy's if there is one."""


@dataclass
class Calls:
    """The calls of one client, by their sequence number."""

    made: dict[int, Call] = field(default_factory=dict)
    attempts: dict[int, list[Attempt]] = field(default_factory=dict)


class Record:
    """What the clients and the pods tell, by the number of the client."""

    def __init__(self) -> None:
        self.clients: dict[int, Calls] = {}

    def of(self, number: int) -> Calls:
        """Return the calls of a client."""
        return self.clients.setdefault(number, Calls())

    def add(self, line: bytes) -> None:
        """Take a line of driver.py."""
        number, sequence, started, latency, code, details = json.loads(line)
        self.of(number).made[sequence] = Call(started, latency, code, details)

    def read_log(self, pod: Pod, line: bytes) -> None:
        """Take a line of a pod's log."""
        if found := _CALL.search(line):
            peer, number, sequence = found.groups()
            attempt = Attempt(pod.name, peer.decode())
            self.of(int(number, 16)).attempts.setdefault(int(sequence, 16), []).append(attempt)
