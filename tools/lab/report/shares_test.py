import pytest

from tools.lab.report.evenness import jain
from tools.lab.report.model import parsed
from tools.lab.report.shares import bins, lanes, lives, load, steps
from tools.lab.report.testing_report import PODS, lab


def run(pods, samples):
    """Return a run of pods, {name: (from, to)}, and samples, [(at, calls, failed)]."""
    data = lab()
    data["runs"] = [
        data["runs"][0]
        | {
            "duration": samples[-1][0],
            "pods": [
                {"name": pod, "address": "127.0.0.2", "from": start, "to": end}
                for pod, (start, end) in pods.items()
            ],
            "samples": [
                {"at": at, "calls": calls, "failed": failed, "p50": 0, "p99": 0.001 * at, "connections": 1}
                for at, calls, failed in samples
            ],
        }
    ]
    return parsed(data).runs[0]


def shares(run, width=1.0):
    """Return {pod: its share in each bin}."""
    all_bins, all_lives = bins(run, width), lives(run)
    return {
        life.pod.name: [part.share for part in steps(life, all_bins, all_lives, load(run))]
        for life in all_lives
    }


def test_an_even_load_gives_each_pod_a_share_of_one():
    """However many pods there are."""
    even = run({"a": (0, None), "b": (0, None)}, [(1, {"a": 5, "b": 5}, {}), (2, {"a": 5, "b": 5}, {})])
    assert shares(even) == {"a": [1, 1], "b": [1, 1]}


def test_all_calls_to_one_of_four_are_a_share_of_four():
    """And the others have none."""
    one = run(dict.fromkeys("abcd", (0, None)), [(1, {"a": 40}, {}), (2, {"a": 40}, {})])
    assert shares(one) == {"a": [4, 4], "b": [0, 0], "c": [0, 0], "d": [0, 0]}


def test_a_pod_that_was_there_for_a_part_of_a_bin_owes_no_more_than_that():
    """A pod that comes in the middle of a second has its whole share with half of the calls."""
    late = run({"a": (0, None), "b": (0.5, None)}, [(1, {"a": 30, "b": 10}, {}), (2, {"a": 20, "b": 20}, {})])
    assert shares(late)["b"] == pytest.approx([0.75, 1])  # of 40 a second there are 1.5 pods in the first


def test_failed_calls_are_a_part_of_the_load():
    """So a pod that answers half of its calls has half of its share."""
    failing = run({"a": (0, None)}, [(1, {"a": 10}, {}), (2, {"a": 5}, {"UNAVAILABLE": 5})])
    assert load(failing) == 10
    assert shares(failing) == {"a": [1, 0.5]}


def test_bins_hold_all_samples():
    """None is lost, also where the last are too few for a bin; p99 is the largest."""
    parts = bins(run({"a": (0, None)}, [(at / 4, {"a": 1}, {"X": 2}) for at in range(1, 11)]), 1.0)
    assert [(part.start, part.end) for part in parts] == [(0, 1), (1, 2), (2, 2.5)]
    assert [part.calls["a"] for part in parts] == [4, 4, 2]
    assert [part.failed["X"] for part in parts] == [8, 8, 4]
    assert [part.p99 for part in parts] == pytest.approx([0.001, 0.002, 0.0025])


def test_a_pod_lives_as_long_as_it_has_calls():
    """Calls in flight when it ended are its own, and are shown."""
    drained = run({"a": (0, 1), "b": (0, None)}, [(at, {"a": 1, "b": 1}, {}) for at in (1, 2, 3)])
    assert [(life.start, life.end) for life in lives(drained)] == [(0, 3), (0, 3)]
    early = run({"a": (0, None), "b": (2, None)}, [(at, {"a": 1, "b": 1}, {}) for at in (1, 2, 3)])
    assert [(life.start, life.end) for life in lives(early)] == [(0, 3), (0, 3)]


def test_a_pod_takes_the_lane_of_one_that_has_ended():
    """A rolling restart of six with one more at a time has seven lanes, and no two pods overlap in one."""
    (first, *_) = parsed(lab()).runs
    rows = lanes(lives(first))
    assert len(rows) == 7
    assert sorted(life.pod.name for row in rows for life in row) == sorted(PODS)
    assert all(row[i].end <= row[i + 1].start for row in rows for i in range(len(row) - 1))


@pytest.mark.parametrize(
    ("values", "index"), [([5, 5, 5], 1), ([9, 0, 0], 1 / 3), ([2, 1], 0.9), ([], 0), ([0, 0], 0)]
)
def test_jains_index(values, index):
    """It is 1 where all have the same, and 1/n where one has all."""
    assert jain(values) == pytest.approx(index)
