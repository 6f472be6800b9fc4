"""What happens to a fleet, and when: the file of `--story`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from grpc_common.config.document import ConfigError, Document, Place, dotted
from grpc_common.config.section import Section
from grpc_common.config.units import WRITTEN, Count, Duration, Factor, PositiveDuration
from grpc_common.config.yaml_file import read_document

type Pods = Annotated[Count, Field(ge=1, le=6)]
"""Two fleets of so many, and as many that end, share the 97 connections that PostgreSQL has for them."""


class Event(Section):
    """One thing that happens."""

    at: Duration
    """When it begins; later if the event before it has not ended."""


class Scale(Event):
    """The number of pods changes."""

    do: Literal["scale"]
    pods: Pods


class Slow(Event):
    """A pod is slow: all that it says to its database, and hears from it, is delayed."""

    do: Literal["slow"]
    delay: PositiveDuration
    """In each direction; a call has one way there and back."""
    for_: Annotated[PositiveDuration, Field(alias="for")]


class NotServing(Event):
    """A pod, alone, has lost its database, and so its health says NOT_SERVING."""

    do: Literal["not-serving"]
    for_: Annotated[PositiveDuration, Field(alias="for")]


class Simple(Event):
    """All pods are replaced, or one is killed, or the database is restarted."""

    do: Literal["roll", "kill", "restart-database"]


class Story(Section):
    """A load, and what happens under it."""

    pods: Pods
    """At the beginning."""

    rate: Annotated[Factor, Field(ge=1, le=1000)]
    """Calls of each client a second."""

    max_connection_age: Annotated[PositiveDuration, Field(ge=1)]
    """Of the servers; also the least time between two questions of grpcio and grpc-go to DNS."""

    events: list[Annotated[Scale | Slow | NotServing | Simple, Field(discriminator="do")]]

    until: PositiveDuration
    """When the load ends; later if the last event has not ended."""

    @model_validator(mode="after")
    def _in_order(self) -> Story:
        times = [event.at for event in self.events]
        if times != sorted(times):
            raise ValueError("the events are not in the order of their times; sort them by `at`")
        if times and times[-1] >= self.until:
            raise ValueError("the story ends before its last event; choose a later `until`")
        return self

    @model_validator(mode="after")
    def _scales(self) -> Story:
        pods = self.pods
        for index, event in enumerate(self.events):
            if isinstance(event, Scale):
                if event.pods == pods:
                    raise ValueError(f"events.{index}: there are {pods} pods already; choose another number")
                pods = event.pods
        return self


def read_story(file: Path) -> Story:
    """Read a story.

    Raises:
        ConfigError: the file can't be read, or is no story; each line names a line of it.

    """
    document = read_document(file)
    if document.mistakes:
        raise ConfigError.of(*document.mistakes)
    try:
        return Story.model_validate(document.values, context=WRITTEN)
    except ValidationError as error:
        mistakes = [f"{file}{_line(document, each['loc'])}: {_words(each['msg'])}" for each in error.errors()]
        raise ConfigError.of(*mistakes) from None


def _line(document: Document, place: Place) -> str:
    """Return where a value stands, or what it is in if it is missing."""
    # The kind of an event is a part of pydantic's place, and none of the file's.
    path = place if place[:1] != ("events",) else (*place[:2], *place[3:])
    known = (path[:end] for end in range(len(path), 0, -1) if path[:end] in document.lines)
    line = next((f":{document.lines[each]}" for each in known), "")
    return f"{line}: {dotted(path)}" if path else line


def _words(message: str) -> str:
    return message.removeprefix("Value error, ")
