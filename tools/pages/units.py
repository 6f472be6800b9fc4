"""Figures as people read them."""


def readable(seconds: float) -> str:
    """Return a time as people read it, in three digits."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:  # noqa: PLR2004 (or it is 1000, and the next unit is due)
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:,.0f} s"  # noqa: PLR2004 (or it is 1e+03)
