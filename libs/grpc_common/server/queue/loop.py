"""An asyncio loop that runs what completes in C-core's completion queue."""

import asyncio
import selectors
from typing import Any

from grpc_common.server.queue.selector import TURN, QueueSelector


class QueueLoop(asyncio.SelectorEventLoop):
    """Waits in the queue, and does all else as asyncio's own loop.

    Raises:
        StartError: C-core does not answer as it should.

    """

    def __init__(self) -> None:
        self.waiter = QueueSelector()
        super().__init__(self.waiter)
        # What asyncio finds behind a descriptor that can be read.
        run = asyncio.Handle(self._run_completed, (), self)
        self.waiter.run_with(selectors.SelectorKey(-1, -1, selectors.EVENT_READ, (run, None)))

    @property
    def queue(self) -> Any:
        """C-core's queue."""
        return self.waiter.queue

    def _write_to_self(self) -> None:
        self.waiter.wake()

    def _run_completed(self) -> None:
        """Run what has completed, and what completes thereby: often a whole call in one turn."""
        waiter = self.waiter
        left = TURN
        while waiter.completed and left > 0:
            events, waiter.completed = waiter.completed, []
            left -= len(events)
            self._run(events)
            waiter.begin_put_off()
            if waiter.is_expecting:
                waiter.is_expecting = False
                waiter.look()

    def _run(self, events: list[Any]) -> None:
        events.reverse()
        while events:
            event = events.pop()  # it may hold megabytes of metadata
            try:
                event.tag(event)
            except (KeyboardInterrupt, SystemExit):
                self.waiter.completed[:0] = events[::-1]
                raise
            except BaseException as error:  # noqa: BLE001 (one call must not end those behind it)
                what = {"message": "exception in a completion of gRPC", "exception": error}
                self.call_exception_handler(what)
