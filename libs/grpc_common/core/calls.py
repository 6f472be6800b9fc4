"""A call as everything that observes calls sees it, on the server's side and on the client's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, cast

import grpc

from grpc_common.core.caller import Caller


class CallType(StrEnum):
    """How a method streams, in the words of the metrics' label `grpc_type`."""

    UNARY = "unary"
    """One request, one response."""

    CLIENT_STREAM = "client_stream"
    """Many requests, one response."""

    SERVER_STREAM = "server_stream"
    """One request, many responses."""

    BIDI_STREAM = "bidi_stream"
    """Many requests, many responses."""

    @classmethod
    def of(cls, *, request_streaming: bool, response_streaming: bool) -> CallType:
        """Return the type of a method that streams as told."""
        if request_streaming:
            return cls.BIDI_STREAM if response_streaming else cls.CLIENT_STREAM
        return cls.SERVER_STREAM if response_streaming else cls.UNARY

    @property
    def shape(self) -> str:
        """What grpc's own names for handlers and multi-callables of the type have in them: `unary_stream`."""
        return {
            CallType.UNARY: "unary_unary",
            CallType.CLIENT_STREAM: "stream_unary",
            CallType.SERVER_STREAM: "unary_stream",
            CallType.BIDI_STREAM: "stream_stream",
        }[self]


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service: `user.UserService`, `GetUser`, and how it streams."""

    service: str
    name: str
    type: CallType

    path: str = field(init=False, repr=False, compare=False)
    """The method as it is on the wire: `/package.Service/Method`."""

    key: str = field(init=False, repr=False, compare=False)
    """Stands for it in dictionaries that each call asks: a text is hashed once, a dataclass each time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", f"/{self.service}/{self.name}")
        object.__setattr__(self, "key", f"{self.type.value} {self.path}")

    @classmethod
    def from_path(cls, path: str, call_type: CallType) -> Method:
        """Return the method with the path `/package.Service/Method`."""
        service, _, name = path.removeprefix("/").partition("/")
        return cls(service, name, call_type)


type Metadata = list[tuple[str, str | bytes]]


@dataclass(slots=True, eq=False)
class Call:
    """One call from its start to its end."""

    method: Method
    metadata: Metadata = field(default_factory=list, repr=False)  # with credentials, which no log may have
    """Server: what the caller sent. Client: what will be sent; an observer may append to it."""

    peer: str = ""
    """Server: the caller's address, as `ipv4:10.0.0.7:41234`. Client: the channel's target."""

    deadline: float | None = None
    """Seconds that were left at the start; None without a deadline."""

    start: float = field(default_factory=time.perf_counter)
    """When the call started, by time.perf_counter()."""

    code: grpc.StatusCode | None = None
    """How the call ended; None while it runs."""

    trace_id: str = ""
    """32 hexadecimal digits once tracing knows it, for the log."""

    sampled: bool = False
    """Whether the trace is kept."""

    error: BaseException | None = None
    """Server: what has ended the call, if it has failed: an exception of the handler, or its status."""

    caller: str = ""
    """Server: who calls, as text for the log; empty where callers are not told apart."""

    identity: Caller | None = None
    """Server: the same for programs: what the certificate and the token say; None for nobody known."""

    unknown_path: str = ""
    """Server: what the caller asked for, if there is no such method; text of a stranger."""

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def time_remaining(self) -> float | None:
        """Return the seconds that are left, which are below 0 after the deadline; None without a deadline."""
        return None if self.deadline is None else self.deadline - self.elapsed


type Interceptor = Callable[[Call], AbstractAsyncContextManager[object]]
"""Runs around calls of every type: `@asynccontextmanager async def interceptor(call): ...; yield; ...`.

What it raises ends the call, with a status as if the handler had raised it. The handler's own exception comes
out of its `yield`, as does, on a client, that of a call that has failed. On a client what it appends to
`call.metadata` is sent. For messages there is nothing here: they belong to the handler.
"""


class ParentCall(Protocol):
    """The call of a server, for the calls that its handler makes."""

    @property
    def has_answered(self) -> bool:
        """Whether it has ended by itself, so that it passes on nothing to what goes on."""

    @property
    def passed_on(self) -> Sequence[tuple[str, str | bytes]]:
        """The metadata that they carry on."""

    def time_remaining(self) -> float | None:
        """Return the seconds that they have, unless they say otherwise."""

    def cancel_with_it(self, cancel: Callable[[], object]) -> Callable[[], None]:
        """Have `cancel` called when this call is cancelled, or at once if it is; return what undoes that."""


running_call: ContextVar[Call | None] = ContextVar("running_call", default=None)
"""The call of a server in whose task, or thread, the code runs: for the log, and `current_call`."""

_left_behind: ContextVar[Call | None] = ContextVar("left_behind", default=None)
"""The running call where it is no parent, since what runs may outlive it."""


def parent_call() -> ParentCall | None:
    """Return the call of a server for those that are made here; None where they are on their own."""
    call = running_call.get()
    return None if call is _left_behind.get() else cast("ParentCall", call)


def context_without_parent() -> Context:
    """Return a copy of this context in which calls are on their own."""
    context = copy_context()
    context.run(_left_behind.set, running_call.get())
    return context


class CallObserver(Protocol):
    """Follows calls: metrics, traces, the access log.

    On the server both methods run in the task of the call, so that context variables set in
    `started` are seen by the servicer; on the client `ended` may run in another task. An observer
    is for all calls: what it must remember about one belongs in a dictionary of its own, with the
    call as the key.
    """

    def started(self, call: Call) -> None:
        """Take note of a call that begins."""

    def ended(self, call: Call) -> None:
        """Take note of a call that has ended with `call.code`."""
