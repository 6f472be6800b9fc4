"""How even calls are over pods."""

from collections.abc import Sequence


def jain(values: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 is even, 1/n all to one of n; 0 where there is nothing.

    R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness and Discrimination for Resource Allocation
    in Shared Computer Systems (DEC-TR-301, 1984).
    """
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 0.0
