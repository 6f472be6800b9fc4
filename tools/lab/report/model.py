"""The report as data: what the JSON file of the lab or of a bad day holds. All times are in seconds."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from grpc_common.core.errors import printable

_LONGEST = 7 * 86_400
"""Seconds: a week, of which the axis of a chart still has room for each hour."""

type Time = Annotated[float, Field(ge=0, le=_LONGEST, allow_inf_nan=False)]
"""Seconds, or seconds since the start."""

type Count = Annotated[int, Field(ge=0, le=2**53)]
"""At most what a float has to the last digit."""

type Fairness = Annotated[float, Field(ge=0, le=1)]
"""Jain's index; None where there were no calls."""

type Failures = dict[str, Count]
"""How many calls failed, by cause."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Event(_Part):
    """What happens in the story."""

    at: Time
    until: Time
    name: str
    title: str
    planned: bool
    """Whether it is one that people do on purpose, in which no call may fail."""

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.until < self.at:
            raise ValueError(f"it ends at {self.until}, before it begins at {self.at}")
        return self


class Pod(_Part):
    """A server, and from when to when calls could go to it."""

    name: str
    address: str
    start: Time = Field(alias="from")
    end: Time | None = Field(alias="to")
    """None if it outlived the run."""


class Sample(_Part):
    """What happened since the sample before."""

    at: Time
    calls: dict[str, Count]
    """How many calls each pod has answered."""

    failed: Failures
    p50: Time | None
    p99: Time | None
    connections: Count
    """Open at that time."""


class Phase(_Part):
    """A part of a run: an event, or the time between two."""

    event: str | None
    """The event's name; None if it is none."""

    title: str
    start: Time = Field(alias="from")
    end: Time = Field(alias="to")
    calls: Count
    jain: Fairness | None
    p50: Time | None
    p99: Time | None
    failed: Failures


class Figures(_Part):
    """A run in a few figures; None is what the run did not have."""

    jain_steady: Fairness | None
    new_pod_seconds: Time | None
    """Until a new pod had its share."""

    failed_planned: Count
    failed_unplanned: Count
    p50: Time | None
    p99: Time | None
    p99_slow_pod: Time | None
    connections_opened: Count | None


class Run(_Part):
    """One strategy in the story, or one bad day."""

    name: str
    title: str
    about: str
    events: list[Event] | None
    """None if they are those of the report."""

    duration: Annotated[float, Field(gt=0, le=_LONGEST, allow_inf_nan=False)]
    pods: list[Pod]
    samples: list[Sample]
    phases: list[Phase]
    figures: Figures

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        times = [0.0, *(sample.at for sample in self.samples)]
        for index, (earlier, later) in enumerate(pairwise(times)):
            if later <= earlier:
                raise ValueError(f"samples[{index}] is at {later}, not later than {earlier} before it")
        known = {pod.name for pod in self.pods}
        if len(known) < len(self.pods):
            raise ValueError("several pods have the same name")
        if unknown := {pod for sample in self.samples for pod in sample.calls} - known:
            raise ValueError(f"samples name pods that are not in pods: {', '.join(sorted(unknown))}")
        return self


class Skipped(_Part):
    """A run that there was not."""

    name: str
    title: str
    why: str


class Invariant(_Part):
    """What must hold on any day."""

    name: str
    title: str
    held: bool
    detail: str


class Report(_Part):
    """All that one run of the lab, or one bad day, has shown."""

    version: Literal[1]
    kind: Literal["lab", "bad-day"]
    title: str
    setting: dict[str, Any]
    """Where and how it was measured."""

    events: list[Event]
    runs: Annotated[list[Run], Field(min_length=1)]
    skipped: list[Skipped] = []
    seed: int | None = None
    invariants: list[Invariant] = []

    @model_validator(mode="after")
    def _of_a_day(self) -> Self:
        if self.kind == "bad-day" and (self.seed is None or not self.invariants):
            raise ValueError("a bad day has a seed and invariants")
        return self

    @property
    def duration(self) -> float:
        """How long the longest run is, with all of its events and samples: the time axis of all."""
        ends = [event.until for run in self.runs for event in self.events_of(run)]
        ends += [sample.at for run in self.runs for sample in run.samples[-1:]]
        return max([*ends, *(run.duration for run in self.runs)])

    def events_of(self, run: Run) -> list[Event]:
        """Return what happened in a run."""
        return self.events if run.events is None else run.events


def parsed(data: Any) -> Report:
    """Return the report that a JSON file holds.

    Raises:
        ValueError: it is no such report; the message has a line for each part that is wrong.

    """
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        wrong = "\n".join(printable(f"{_where(each['loc'])}: {each['msg']}") for each in error.errors())
        raise ValueError(f"it is no report of the lab or of a bad day:\n{wrong}") from error


def _where(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or "the report"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read(file: Path) -> dict[str, Any]:
    """Return what a JSON file holds, once it is known to be a report.

    Raises:
        ValueError: it is not.
        OSError: it can't be read.

    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    parsed(data)
    return dict(data)
