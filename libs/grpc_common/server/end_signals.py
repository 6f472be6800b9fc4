"""SIGTERM and SIGINT: the first one ends the servers of a process in order, a second one the process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import FrameType

from grpc_common.config import process_end
from grpc_common.observe import stderr

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_FLUSH = 0.1
"""Seconds for the last lines of the log when a second signal ends the process at once."""


class EndSignals:
    """The signals that end the servers of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._first: asyncio.Future[signal.Signals] = loop.create_future()
        self._received = False
        self._is_bounded = process_end.is_bounded()
        self._seconds = 0.0
        for signum in _SIGNALS:
            # The loop's own handler comes with what wakes it, whichever thread gets the signal. Ours runs
            # even while a call blocks the loop.
            loop.add_signal_handler(signum, lambda: None)
            signal.signal(signum, self.receive)

    def allow(self, seconds: float) -> None:
        """Leave a server this long to drain."""
        self._seconds = max(self._seconds, seconds)

    async def first(self) -> signal.Signals:
        """Wait for the first signal."""
        return await asyncio.shield(self._first)

    @asynccontextmanager
    async def interrupting(self) -> AsyncIterator[None]:
        """Cancel the block at the first signal.

        Raises:
            InterruptedError: a signal has come.

        """
        loop = asyncio.get_running_loop()
        block = asyncio.timeout(None)
        try:
            async with block:

                def interrupt(_first: asyncio.Future[signal.Signals]) -> None:
                    with suppress(RuntimeError):  # the block has just ended
                        block.reschedule(loop.time())

                self._first.add_done_callback(interrupt)
                try:
                    yield
                finally:
                    self._first.remove_done_callback(interrupt)
        except TimeoutError:
            if not block.expired():
                raise
            raise InterruptedError from None

    def receive(self, signum: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._received:
            stderr.flush(_FLUSH)
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self._received = True
        if self._is_bounded:
            process_end.end_within(self._seconds, self.loop)
        self.loop.call_soon_threadsafe(self._first.set_result, signal.Signals(signum))


def end_signals(seconds: float) -> EndSignals:
    """Return the signals for a server that may take `seconds` to drain; the servers of a loop share them."""
    loop = asyncio.get_running_loop()
    handler = signal.getsignal(signal.SIGTERM)
    signals = getattr(handler, "__self__", None)
    if not isinstance(signals, EndSignals) or signals.loop is not loop:
        signals = EndSignals(loop)
    signals.allow(seconds)
    return signals
