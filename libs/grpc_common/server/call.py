"""One call of a server, from its headers until its status has left."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, override

import grpc

from grpc_common.config.durations import format_duration
from grpc_common.core.calls import Call, Metadata, Method, running_call
from grpc_common.core.errors import Status, StatusError, status_of
from grpc_common.observe.observers import Observers
from grpc_common.server.background import Background
from grpc_common.server.messages import SMALL, MessageMemory
from grpc_common.server.metadata import checked, is_sendable
from grpc_common.server.rpc import Rpc


class ServerCall(Call):
    """What hangs on a call: its status, the observers, its end before its handler's.

    Make it in the task of the call.
    """

    __slots__ = (
        "_answering",
        "_background",
        "_cancelled_with_it",
        "_held",
        "_loop",
        "_memory",
        "_observers",
        "_task",
        "_was_cancelled",
        "admitted",
        "failure",
        "in_handler",
        "propagated",
        "rpc",
        "time_limit",
    )

    def __init__(
        self, method: Method, rpc: Rpc, observers: Observers, memory: MessageMemory, background: Background
    ) -> None:
        context = rpc.context
        super().__init__(
            method,
            metadata=list(context.invocation_metadata() or ()),
            peer=context.peer(),
            deadline=context.time_remaining(),
        )
        self.rpc = rpc
        self.admitted = False
        self.in_handler = False
        """Whether the servicer's code was called."""
        self.failure: StatusError | None = None
        """The status that was decided before the handler's end: by abort, a deadline or a shutdown."""
        self.time_limit: float | None = None
        """Seconds that the server gives a call without a deadline of its own."""
        self.propagated: frozenset[str] = frozenset()
        """The names of the metadata that the calls of its handler carry on."""
        self._background = background
        self._cancelled_with_it: dict[Callable[[], object], None] = {}
        self._observers = observers
        self._memory = memory
        self._held = 0
        self._task = asyncio.current_task()
        self._loop: asyncio.AbstractEventLoop
        self._was_cancelled = False
        self._answering: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the call's status is decided, so that no message can be sent any more."""
        return self.code is not None or self.failure is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether the task of the call was cancelled, as it is when the caller is gone."""
        return self._was_cancelled if self._task is None else self._task.cancelling() > 0

    @property
    def runs_here(self) -> bool:
        """Whether the task of the call is the one that asks."""
        return self._task is not None and asyncio.current_task() is self._task

    async def read(self) -> bytes | None:
        """Return the caller's next message, None after the last one.

        Raises:
            StatusError: there is no room for it.

        """
        message = await self.rpc.read()
        if message is not None:
            self.hold(message)
        return message

    async def write(self, message: bytes) -> None:
        """Send a message.

        Raises:
            StatusError: there is no room for it.

        """
        self.hold(message)
        await self.rpc.write(message)

    def hold(self, message: bytes) -> None:
        """Have the call take the memory of `message`, in place of its last one, until its status has left.

        Raises:
            StatusError: there is no room for it.

        """
        if self._held or len(message) > SMALL:
            held, self._held = self._held, 0
            self._held = self._memory.replace(held, message)

    @override
    def time_remaining(self) -> float | None:
        """Return the seconds until the client's deadline, or the server's if the client has sent none."""
        limit = self.time_limit if self.deadline is None else self.deadline
        return None if limit is None else limit - self.elapsed

    @property
    def has_answered(self) -> bool:
        """Whether its status is decided, and not since it was cancelled."""
        return self.is_over and not self.is_cancelled

    @property
    def passed_on(self) -> Metadata:
        """The metadata that the calls of its handler carry on."""
        return [pair for pair in self.metadata if pair[0] in self.propagated and is_sendable(*pair)]

    def cancel_with_it(self, cancel: Callable[[], object]) -> Callable[[], None]:
        """Have `cancel` called when the call is cancelled, or at once if it is; return what undoes that."""
        if self.is_cancelled:
            cancel()
        self._cancelled_with_it[cancel] = None
        return lambda: self._cancelled_with_it.pop(cancel, None)

    def cancel_others(self) -> None:
        """Cancel the calls that its handler makes."""
        for cancel in list(self._cancelled_with_it):
            cancel()

    def run_in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Run `work` in a task that outlives the call, and that the server's drain waits for.

        Calls that it makes have deadlines of their own. An exception that it raises is logged. What still
        runs after the drain's grace, or comes after the drain, is cancelled.

        Raises:
            TypeError: it is no coroutine.

        """
        loop = self._loop if self._task is None else self._task.get_loop()
        self._background.start(work, loop)

    def begin(self) -> None:
        """Tell observers of the call."""
        running_call.set(self)
        self._observers.started(self)

    def finish(self, code: grpc.StatusCode) -> None:
        """Tell observers how the call has ended."""
        assert self.code is None
        self.code = code
        if self._task is None or self.runs_here:
            self._observers.ended(self)
        else:  # observers may have set context variables
            self._task.get_context().run(self._observers.ended, self)

    def leave(self) -> None:
        """Let go of the task if it is over, since its context variables hold this object."""
        task = self._task
        if task is not None and (task.done() or self.runs_here):  # or in its last step
            self._was_cancelled, self._loop = task.cancelling() > 0, task.get_loop()
            self._task = self._answering = None

    async def end(self, error: StatusError) -> None:
        """Send the status of `error`, unless the call has one, and return once it has left."""
        self._answer(error)
        if self._answering is not None:
            await asyncio.wait([self._answering])

    def end_early(self, error: StatusError) -> None:
        """Send the status of `error` at once and cancel the handler, whatever that makes of it."""
        if self.code is None:
            self.failure = self.failure or error  # a servicer that hangs may have aborted before
            self._answer(self.failure)
            self.cancel_others()
            self.rpc.interrupt()

    def _answer(self, error: StatusError) -> None:
        if self.code is None:
            self.error = self.error or error
            status = self._status(error)
            self.finish(status.code)
            # A task of its own: whoever has ended the call may be cancelled, which its client is not to see.
            self._answering = asyncio.get_running_loop().create_task(self.rpc.answer(status))

    def expire(self) -> None:
        """End the call, since it has taken longer than it may."""
        limit = format_duration(self.time_limit or 0)
        message = f"the call took longer than {limit}, which holds for calls without a deadline of their own"
        self.end_early(StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, message))

    def _status(self, error: StatusError) -> grpc.Status:
        trailers = self.rpc.context.trailing_metadata() or ()
        try:
            return _sendable(error.to_status(trailers))
        except BaseException as mistake:  # noqa: BLE001 (a servicer's own class of errors may do anything)
            return status_of(mistake, self.method.path).to_status()


def current_call() -> ServerCall:
    """Return the call of a server in whose handler this runs, be it in another task or in a thread.

    A thread has it by asyncio.to_thread, as other context variables; `run_in_executor` takes none along.

    Raises:
        LookupError: no handler runs here.

    """
    call = running_call.get()
    if not isinstance(call, ServerCall):
        message = "current_call() is for what a handler runs, in its task, other tasks or a thread"
        raise LookupError(message)  # noqa: TRY004 (nobody has given a wrong type)
    return call


def _sendable(status: grpc.Status) -> Status:
    """Return a copy of a status that a class of the servicer's has made; gRPC would fail at a wrong one."""
    error = StatusError(status.code, status.details)
    return Status(error.code, error.message, checked(status.trailing_metadata or ()))
