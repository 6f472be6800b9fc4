import pytest

from tools.pages.percentiles import median_and_p99, percentile


def test_a_percentile_lies_so_far_between_the_least_and_the_largest():
    """Order does not matter, and what no value has is between two of them."""
    assert percentile([3, 1, 0, 2, 4], 50) == 2
    assert percentile(range(101), 99) == 99
    assert percentile([0, 1], 99.9) == pytest.approx(0.999)
    assert percentile([7], 99) == 7


def test_a_report_says_of_no_calls_that_there_is_no_latency():
    """So a chart has a gap there."""
    assert median_and_p99([0, 100]) == {"p50": 50, "p99": 99}
    assert median_and_p99([]) == {"p50": None, "p99": None}
