"""What is written down of a day while it goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tools.bad_day.invariants import Day


@dataclass
class Happened:
    """A fault or a planned event, with the times at which it really was, in seconds."""

    name: str
    title: str
    planned: bool
    at: float
    until: float | None = None
    """None while it goes on."""


@dataclass
class Record:
    """The day, and what has happened on it."""

    day: Day = field(default_factory=Day)
    happened: list[Happened] = field(default_factory=list)

    @property
    def now(self) -> str | None:
        """What happens at this moment, in words; None if nothing does."""
        return ", ".join(each.title for each in self.happened if each.until is None) or None

    @contextmanager
    def event(self, name: str, title: str, *, planned: bool) -> Iterator[None]:
        """Write down what happens in the block; what it raises has gone wrong, and the day goes on."""
        event = Happened(name, title, planned, self.day.ledger.now())
        self.happened.append(event)
        try:
            yield
        except Exception as error:  # noqa: BLE001 (whatever it is, the day has other events)
            self.day.unrecovered.append(f"{title} of {event.at:.1f} s failed: {error!r}")
        finally:
            event.until = self.day.ledger.now()
            if name == "pod-terminated":
                self.day.terminated.append(event.at)
