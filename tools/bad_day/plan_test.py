from itertools import pairwise

import pytest

from tools.bad_day.plan import KINDS, PLANNED, STORM, plan


@pytest.mark.parametrize("seed", range(20))
def test_equal_seeds_have_equal_days(seed):
    """A day is replayed by its seed; another seed has another day."""
    assert plan(seed, 1200) == plan(seed, 1200)
    assert plan(seed, 1200) != plan(seed + 1, 1200)


@pytest.mark.parametrize("seed", range(20))
def test_each_kind_comes(seed):
    """In twenty minutes everything that can happen does, the planned events as well."""
    rounds = plan(seed, 1200)
    assert {fault.kind for each in rounds for fault in each.faults} == {*KINDS}
    assert {each.planned for each in rounds} == {*PLANNED}


@pytest.mark.parametrize("seed", range(20))
def test_one_fault_at_a_time_happens_to_a_resource(seed):
    """A fault begins when the one before it, of the same resource, is over; all begin in the storm."""
    for each in plan(seed, 1200):
        for resource in {kind.resource for kind in KINDS.values()}:
            faults = [fault for fault in each.faults if KINDS[fault.kind].resource == resource]
            assert all(first.until < second.at for first, second in pairwise(faults))
        assert sum(fault.at < STORM for fault in each.faults) > len(each.faults) / 2


@pytest.mark.parametrize(("seconds", "rounds"), [(30, 1), (120, 2), (1200, 20)])
def test_length_of_a_day(seconds, rounds):
    """A day has a storm a minute, and one at least."""
    assert len(plan(1, seconds)) == rounds
