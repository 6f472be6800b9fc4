"""Figures as people read them."""


def readable(seconds: float) -> str:
    """Return a time as people read it."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 1000:  # noqa: PLR2004 (or the next unit is due)
            return f"{seconds * factor:.{1 if unit == 'µs' else 2}f} {unit}"
    return f"{seconds:.2f} s"
