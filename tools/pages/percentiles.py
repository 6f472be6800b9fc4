"""Percentiles, which are the same in every report."""

import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many percent of `values` are below, as far between two as need be.

    Args:
        values: in any order.
        percent: to the tenth, as 99.9.

    Raises:
        statistics.StatisticsError: there are no values.

    """
    return statistics.quantiles(values, n=1000, method="inclusive")[round(10 * percent) - 1]


def median_and_p99(latencies: Sequence[float]) -> dict[str, float | None]:
    """Return what the lab's JSON has of latencies: p50 and p99, which are None if there are no calls."""
    return {f"p{each}": percentile(latencies, each) if latencies else None for each in (50, 99)}
