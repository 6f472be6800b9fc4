"""What the clients of a bad day have asked for and were told: the truth that the service is held to."""

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from user import user_service_pb2 as pb


@dataclass(slots=True, eq=False)
class Made:
    """One call; times are seconds since the ledger was opened."""

    client: str
    method: str
    began: float
    deadline: float
    """When it had to have a status at the latest."""

    ended: float | None = None
    code: str = ""
    detail: str = ""

    def within(self, start: float, end: float) -> bool:
        """Return whether it began and ended between two times."""
        return self.ended is not None and start <= self.began and self.ended <= end

    def overlaps(self, start: float, end: float) -> bool:
        """Return whether it went on at any moment between two times."""
        return self.began <= end and (self.ended is None or start <= self.ended)

    def __str__(self) -> str:
        """Return what a report says of a call that failed."""
        ended = "has not ended" if self.ended is None else f"{self.code} at {self.ended:.1f} s: {self.detail}"
        return f"{self.client} {self.method} of {self.began:.1f} s {ended}"


@dataclass
class Ledger:
    """All that was asked and answered."""

    start: float = field(default_factory=time.monotonic)
    """When the day began, by the machine's clock."""

    acknowledged: dict[str, pb.User] = field(default_factory=dict)
    """The users that the service said it has made, by name."""

    attempted: set[str] = field(default_factory=set)
    """Names of all users that it was asked to make."""

    untrue: list[str] = field(default_factory=list)
    """Answers that can't be: another user for the same key, a user that is gone, one made twice."""

    running: set[Made] = field(default_factory=set)
    """Calls without a status."""

    failed: list[Made] = field(default_factory=list)
    late: list[Made] = field(default_factory=list)
    """Calls whose status came after their deadline."""

    _names: list[str] = field(default_factory=list)

    succeeded: Counter[str] = field(default_factory=Counter)
    """Calls by client."""

    stalls: list[tuple[float, float]] = field(default_factory=list)
    """From when to when the clients' process did not run, for want of CPU or because something held it up."""

    latencies: list[float] = field(default_factory=list)
    """Seconds of the calls that have succeeded since `take` was called."""

    def now(self) -> float:
        """Return the seconds since the day began."""
        return time.monotonic() - self.start

    def stalled(self, start: float, end: float) -> float:
        """Return the seconds between two times in which the clients' process did not run."""
        return sum(max(0.0, min(end, last) - max(start, first)) for first, last in self.stalls)

    @property
    def made(self) -> int:
        """How many calls have ended."""
        return self.succeeded.total() + len(self.failed)

    @asynccontextmanager
    async def call(self, client: str, method: str, seconds: float) -> AsyncIterator[Made]:
        """Have a call in the books that has so many seconds; a failed one ends the block in silence."""
        began = self.now()
        made = Made(client, method, began, began + seconds)
        self.running.add(made)
        try:
            yield made
            made.code = "OK"
        except grpc.aio.AioRpcError as error:
            made.code, made.detail = error.code().name, error.details() or ""
        except BaseException as error:  # also asyncio's cancellation, by which a channel may lose a call
            made.code, made.detail = type(error).__name__, str(error)
            raise
        finally:
            self._ended(made)

    def _ended(self, made: Made) -> None:
        self.running.discard(made)
        made.ended = self.now()
        if made.ended > made.deadline:
            self.late.append(made)
        if made.code == "OK":
            self.succeeded[made.client] += 1
            self.latencies.append(made.ended - made.began)
        else:
            self.failed.append(made)

    async def created(self, name: str, answer: Awaitable[pb.User]) -> None:
        """Book the answer to a create of the user `name`."""
        self.attempted.add(name)
        user = await answer
        if name not in self.acknowledged:
            self._names.append(name)
        first = self.acknowledged.setdefault(name, user)
        if first != user or user.name != name:
            self.untrue.append(f"{name} was made as {first.id}, and then as {user.id}, {user.name}")

    def any_user(self, chance: random.Random) -> pb.User:
        """Return one of the acknowledged users."""
        return self.acknowledged[chance.choice(self._names)]

    def take(self) -> list[float]:
        """Return the latencies since the last time."""
        taken, self.latencies = self.latencies, []
        return taken
