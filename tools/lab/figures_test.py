import pytest

from tools.lab.calls import Attempt, Call, Calls
from tools.lab.figures import PodLife, Run
from tools.lab.play import Happening

START = 1000.0


def calls_of(*answers):
    """Return calls of (seconds since the start, pod, code); the details of a failure have an address."""
    calls = Calls()
    for number, (at, pod, code) in enumerate(answers):
        calls.made[number] = Call(
            START + at, 0.01 * (number + 1), code, "" if code == "OK" else "to 127.0.0.2:5"
        )
        if pod:
            calls.attempts[number] = [Attempt(pod, "ipv4:127.0.0.1:7")]
    return calls


def run_of(calls, *, happenings=(), pods=(), duration=10.0):
    """Return a run of calls."""
    return Run(calls, START, duration, happenings, pods)


def ok(pod, *times):
    """Return answers of a pod."""
    return [(at, pod, "OK") for at in times]


A, B = PodLife("a", "127.0.0.2", 0.0), PodLife("b", "127.0.0.3", 0.0)


def test_samples_tell_each_half_second():
    """A sample has the calls that began in its half second, by pod, and the failures by code."""
    calls = calls_of(*ok("a", 0.1, 0.2), (0.3, "", "UNAVAILABLE"), *ok("b", 0.6))
    first, second = list(run_of(calls, pods=[A, B], duration=1.0).samples(1.0))
    assert (first["at"], first["calls"], first["failed"]) == (0.5, {"a": 2}, {"UNAVAILABLE": 1})
    assert (second["at"], second["calls"], second["failed"]) == (1.0, {"b": 1}, {})
    assert first["p50"] == pytest.approx(0.015)
    assert first["connections"] == 1


def test_phases_are_the_events_and_what_is_between():
    """Evenness counts the pods that were there all the time; one without a call makes it uneven."""
    scaled = Happening(2.0, "scale-up", "scale 1 → 2", planned=True, until=4.0)
    new = PodLife("b", "127.0.0.3", 3.0)
    calls = calls_of(*ok("a", 1.0, 2.5, 3.5, 5.0, 6.0))
    phases = run_of(calls, happenings=[scaled], pods=[A, new]).report()["phases"]
    assert [(phase["event"], phase["calls"], phase["jain"]) for phase in phases] == [
        (None, 1, None),
        ("scale-up", 2, None),
        (None, 2, 0.5),
    ]


def test_terminating_pod_has_no_share_to_get():
    """A pod that terminates is no endpoint, though it runs on; with one that stays nothing is uneven."""
    leaving = PodLife("a", "127.0.0.2", 0.0, left=3.0, end=9.0)
    calls = calls_of(*ok("a", 1.0), *ok("b", 1.5, 5.0, 6.0))
    scaled = Happening(2.0, "scale-down", "scale 2 → 1", planned=True, until=4.0)
    phases = run_of(calls, happenings=[scaled], pods=[leaving, B]).report()["phases"]
    assert [phase["jain"] for phase in phases] == [1.0, None, None]


def test_failures_belong_to_the_event_before_them():
    """What fails after an unplanned event is not held against a planned one, and causes are told once."""
    fault = Happening(2.0, "killed", "one pod killed", planned=False, until=3.0)
    planned = Happening(6.0, "scale-down", "scale 2 → 1", planned=True, until=7.0)
    failures = [(at, "", "UNAVAILABLE") for at in (1.0, 2.5, 4.0, 6.5, 8.0)]
    report = run_of(calls_of(*failures), happenings=[fault, planned], pods=[A, B]).report()
    assert report["figures"]["failed_planned"] == 3
    assert report["figures"]["failed_unplanned"] == 2
    assert report["phases"][-1]["failed"] == {"UNAVAILABLE: to …": 1}


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([3.2, 3.6, 4.0, 4.4], 0.2),
        ([3.2, 5.5, 5.9, 6.3, 6.7], 2.5),
        ([], None),
    ],
    ids=["at once", "after a first call alone", "never"],
)
def test_new_pod_has_its_share(times, seconds):
    """A new pod has its share from the call on with which it gets half of an even share of two seconds."""
    scaled = Happening(2.0, "scale-up", "scale 1 → 2", planned=True, until=4.0)
    new = PodLife("b", "127.0.0.3", 3.0)
    old = [at / 2 for at in range(20)]
    calls = calls_of(*ok("a", *old), *ok("b", *times))
    figures = run_of(calls, happenings=[scaled], pods=[A, new]).report()["figures"]
    assert figures["new_pod_seconds"] == (None if seconds is None else pytest.approx(seconds))


def test_answer_of_a_retried_call_is_the_last_pods():
    """A call that was repeated counts for the pod that answered it."""
    calls = calls_of((0.1, "a", "OK"))
    calls.attempts[0].append(Attempt("b", "ipv4:127.0.0.1:8"))
    [sample] = run_of(calls, pods=[A, B], duration=0.5).samples(0.5)
    assert sample["calls"] == {"b": 1}
    assert sample["connections"] == 2
