"""A bound on lines that others cause: peers of the server, mostly."""

import time

BURST = 10
"""Lines of a kind that are logged in an interval."""

INTERVAL = 10.0
"""Seconds of an interval, at whose end one line tells how many were suppressed."""

_MAX_KINDS = 256
"""Kinds that are told apart in an interval; all others are one."""


class RateLimit:
    """Lets BURST lines of a kind pass in an interval, and counts the others."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._end = 0.0

    def admits(self, kind: str) -> bool:
        """Return whether a line of this kind may be logged now."""
        if not self._counts:
            self._end = time.monotonic() + INTERVAL
        if kind not in self._counts and len(self._counts) >= _MAX_KINDS:
            kind = "other"
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        return count <= BURST

    def take_suppressed(self, *, at_once: bool = False) -> dict[str, int]:
        """Return how many lines were suppressed, by kind; nothing while the interval lasts."""
        if not self._counts or (time.monotonic() < self._end and not at_once):
            return {}
        counts, self._counts = self._counts, {}
        return {kind: count - BURST for kind, count in counts.items() if count > BURST}
