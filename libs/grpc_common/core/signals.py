"""Signals that must not end a server."""

import signal
import time
from types import FrameType

import structlog

log = structlog.get_logger()

_HINTS = {
    "SIGHUP": "the configuration file is followed by itself",
    "SIGUSR1": "it has no meaning here",
    "SIGUSR2": "it has no meaning here",
}

_PAUSE = 1.0
"""Seconds without a further line about the same signal."""

_logged: dict[int, float] = {}


def ignore_harmless_signals() -> None:
    """Log SIGHUP, SIGUSR1 and SIGUSR2 from now on, which end a process otherwise.

    A signal that the program handles itself, or was told to ignore (nohup), stays as it is.
    """
    for name in _HINTS:
        signum = signal.Signals[name]
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, _ignore)


def _ignore(signum: int, _frame: FrameType | None) -> None:
    if not structlog.is_configured():
        return  # before the configuration is read nobody knows how to log
    now = time.monotonic()
    if now - _logged.get(signum, -_PAUSE) < _PAUSE:
        return
    _logged[signum] = now
    name = signal.Signals(signum).name
    log.info("signal ignored", signal=name, hint=_HINTS[name])
