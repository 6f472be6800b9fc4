"""Ends what takes too long: a regular expression in a manifest can be one that never ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class TooSlowError(Exception):
    """The time is over."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Give a block some seconds; for the main thread alone, and not one within another.

    Raises:
        TooSlowError: they were not enough.

    """

    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
