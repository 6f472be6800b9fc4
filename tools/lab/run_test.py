import pytest

from tools.lab.fleet.pod import Timing
from tools.lab.run import timing
from tools.lab.story import Story

BASE = Timing(probe_period=5, probe_timeout=3, pre_stop=5, dns_ttl=5)
"""What k8s/base/deployment.yaml has."""


@pytest.mark.parametrize(("age", "of_base"), [(3, 0.1), (15, 0.5), (30, 1), (300, 1)])
def test_times_are_those_of_the_manifests_or_shorter(age, of_base):
    """With connections that live shorter all goes faster; with such that live longer, nothing is slower."""
    story = Story(pods=1, rate=1, max_connection_age=age, events=[], until=1)
    times = timing(story)
    assert times.pre_stop == times.probe_period == BASE.probe_period * of_base
    assert times.probe_timeout == max(1, BASE.probe_timeout * of_base)
    assert times.dns_ttl == max(1, round(BASE.dns_ttl * of_base))
