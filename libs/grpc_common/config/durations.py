"""Durations as people write them: `15s`, `500ms`, `1m30s`."""

import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
WRITE_A_DURATION = 'write a duration with its unit: "500ms", "15s", "1m30s" or "2h"'
"""What is right, for errors."""


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `15s`, `500ms` or `1m30s`.

    Raises:
        ValueError: it has another form; the text says which would be right.

    """
    if not _DURATION.fullmatch(text):
        raise ValueError(WRITE_A_DURATION)
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def format_duration(seconds: float) -> str:
    """Return the shortest text that parse_duration reads as `seconds`, to the millisecond."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"
