"""Each invariant is broken by what it is there for, and by nothing else."""

import asyncio
import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from user import user_service_pb2 as pb

from tools.bad_day.invariants import ENDING, GROWTH, MEMORY, RECOVERY, SLACK, Day, Window, check
from tools.bad_day.ledger import Ledger, Made
from tools.bad_day.record import Record
from tools.bad_day.vitals import Vitals, peak_memory, vitals

HOUR = 3600


def user(name: str) -> pb.User:
    """Return a user as the service makes one."""
    return pb.User(id=f"id of {name}", name=name, email=f"{name}@example.com")


@pytest.fixture
def day() -> Day:
    """Return a day on which all went well: two users acknowledged, a third perhaps made, a call failed."""
    ledger = Ledger()
    ledger.start -= HOUR
    ledger.acknowledged = {name: user(name) for name in ("ada", "grace")}
    ledger.attempted = {"ada", "grace", "perhaps"}
    ledger.succeeded["kubernetes"] = 2
    ledger.failed = [Made("envoy", "CreateUser", 10, 13, 11, "UNAVAILABLE", "connection reset")]
    rest = {"pod a": Vitals(20, 10, 3), "clients": Vitals(12, 3, 1)}
    return Day(
        ledger,
        users=[user("ada"), user("grace"), user("perhaps")],
        calm=[Window(None, 0, 9, "quiet"), Window(20, 30, 60, "rolling-restart")],
        first=rest,
        last=rest | {"pod b": Vitals(20, 10, 3)},
        peaks={"a": 90 * 2**20},
    )


def broken(day: Day) -> dict[str, str]:
    """Return the details of the invariants that were not held."""
    return {finding.name: finding.detail for finding in check(day) if not finding.held}


def test_good_day(day):
    """On a day on which all went well no invariant is broken, and each says what it has looked at."""
    assert broken(day) == {}
    assert all(finding.detail for finding in check(day))


def test_call_to_a_pod_that_ends_may_be_cancelled(day):
    """A server that stops says so to a call that comes after all others, if nobody has told the client."""
    day.terminated = [9.9]
    day.ledger.failed.append(Made("dns", "GetUser", 10, 13, 11, "CANCELLED"))
    assert broken(day) == {}


def test_proxy_may_reset_an_answer_that_it_has_begun(day):
    """It has sent the header before the pod was gone; nobody but a proxy does."""
    day.ledger.failed.append(Made("envoy", "ListUsers", 10, 13, 11, "INTERNAL", "error 2"))
    assert broken(day) == {}


def test_record_knows_which_pods_nobody_was_told_of():
    """Those are the ones that end by a signal; planned ends are announced."""
    record = Record()
    for kind in ("pod-killed", "pod-terminated", "rolling-restart"):
        with record.event(kind, kind, planned=kind == "rolling-restart"):
            pass
    assert record.day.terminated == [record.happened[1].at]


def lost(day):
    """An acknowledged user is not listed."""
    del day.users[0]


def twice(day):
    """A user is listed twice, under two ids."""
    day.users.append(pb.User(id="another", name="grace"))


def changed(day):
    """A user has another id than it was acknowledged with."""
    day.users[0].id = "another"


def invented(day):
    """A user is listed that nobody asked for."""
    day.users.append(user("nobody"))


def untrue(day):
    """The service has contradicted itself."""
    day.ledger.untrue.append("ada was made as 1, and then as 2")


def hanging(day):
    """A call has no status long after its deadline."""
    now = day.ledger.now()
    day.ledger.running.add(Made("dns", "GetUser", now - SLACK - 4, now - SLACK - 1))


def late(day):
    """A call got its status long after its deadline."""
    day.ledger.late.append(Made("dns", "GetUser", 10, 13, 13.1 + SLACK, "OK"))


def internal(day):
    """A failure does not say that one may come back."""
    day.ledger.failed.append(Made("dns", "GetUser", 10, 13, 11, "INTERNAL", "error 17"))


def cancelled(day):
    """A call is given up though no pod ended: one had before, and one did after."""
    day.terminated = [10 - ENDING - 0.1, 11.1]
    day.ledger.failed.append(Made("dns", "GetUser", 10, 13, 11, "CANCELLED"))


def told(day):
    """A failure tells of the database."""
    day.ledger.failed[0].detail = "AsyncPG: the connection was closed"


def planned(day):
    """A call failed in a planned event."""
    day.ledger.failed.append(Made("envoy", "GetUser", 57, 60, 59, "UNAVAILABLE"))


def at_first(day):
    """A call failed before there was any fault."""
    day.ledger.failed.append(Made("envoy", "GetUser", 0, 8, 9, "UNAVAILABLE"))


def unanswered(day):
    """No call has succeeded, and none has failed."""
    day.ledger.succeeded.clear()
    day.ledger.failed.clear()


def unseen(day):
    """No time was one in which calls may not fail."""
    day.calm.clear()


def unready(day):
    """A pod was not ready again in time."""
    day.unrecovered.append("a is not ready")


def fat(day):
    """A server had more memory than its pod."""
    day.peaks["a"] = MEMORY + 1


def unweighed(day):
    """No server has told its memory."""
    day.peaks = {"a": 0}


def grown(day, **more):
    """Give a pod that came later more than the first ones had at rest."""
    values = {"descriptors": 20, "threads": 10, "tasks": 3}
    day.last["pod b"] = Vitals(**{name: value + more.get(name, 0) for name, value in values.items()})


def silent(day):
    """Most processes do not count their tasks when they are asked."""
    day.last = {name: Vitals(20, 10, None) for name in ("pod a", "pod b")} | {"clients": Vitals(12, 3, 1)}


def incomparable(day):
    """Nobody knows what the only process had at rest that is known at the end."""
    day.last = {"clients": Vitals(12, 3, 1)}
    day.first = day.first | {"clients": Vitals(12, 3, None)}


def of_clients(day):
    """The clients have more descriptors than before, though not more than servers have."""
    day.last["clients"] = Vitals(40, 3, 1)


@pytest.mark.parametrize(
    ("mutate", "name", "detail"),
    [
        (lost, "acknowledged-users", "ada is lost"),
        (twice, "acknowledged-users", "grace is there 2 times"),
        (changed, "acknowledged-users", "ada is lost"),
        (invented, "acknowledged-users", "nobody was never asked for"),
        (untrue, "true-answers", "and then as 2"),
        (hanging, "deadlines", "dns GetUser of 359"),
        (late, "deadlines", "dns GetUser of 10.0 s OK at 16.1 s"),
        (internal, "codes", "dns GetUser of 10.0 s INTERNAL at 11.0 s: error 17"),
        (cancelled, "codes", "dns GetUser of 10.0 s CANCELLED at 11.0 s"),
        (told, "codes", "AsyncPG"),
        (planned, "calm", "UNAVAILABLE at 59.0 s: , in rolling-restart"),
        (at_first, "calm", "envoy GetUser of 0.0 s UNAVAILABLE at 9.0 s: , in quiet"),
        (unready, "calm", "a is not ready"),
        (unseen, "calm", "there was no calm time"),
        (unanswered, "true-answers", "no call was answered"),
        (fat, "memory", "a had 256 MiB"),
        (unweighed, "memory", "no server's memory is known"),
        (
            lambda day: grown(day, descriptors=25),
            "descriptors",
            "pod b had 20 descriptors at rest, and has 45",
        ),
        (lambda day: grown(day, threads=17 + (os.cpu_count() or 1)), "threads", "pod b had 10 threads"),
        (lambda day: grown(day, tasks=25), "tasks", "pod b had 3 tasks at rest, and has 28"),
        (silent, "tasks", "only 1 of 3 times a process told"),
        (incomparable, "tasks", "only 0 of 1 times a process told"),
        (of_clients, "descriptors", "clients had 12 descriptors at rest, and has 40"),
    ],
)
def test_broken(day, mutate, name, detail):
    """What an invariant is there for breaks it alone, and its detail says what was found."""
    before = copy.deepcopy(day)
    mutate(day)
    [(found, text)] = broken(day).items()
    assert found == name
    assert detail in text
    assert broken(before) == {}


def test_nobody_looked_at_is_nobody_found_well(day):
    """Without any process at the end nothing is known of growth."""
    day.last.clear()
    assert broken(day).keys() == GROWTH.keys()


def test_what_is_just_allowed_is_no_breach(day):
    """Each limit is one that may be reached."""
    now = day.ledger.now()
    day.ledger.late.append(Made("dns", "GetUser", 10, 13, 13 + SLACK, "OK"))
    day.ledger.running.add(Made("dns", "GetUser", now - 3, now - SLACK + 1))
    day.peaks["a"] = MEMORY
    grown(day, **GROWTH)
    day.last["clients"] = Vitals(12 + GROWTH["descriptors"], 3 + GROWTH["threads"], 1 + GROWTH["tasks"])
    assert broken(day) == {}


def test_memory_is_that_of_the_pod():
    """Who gives pods less has days on which they must do with less."""
    deployment = yaml.safe_load(Path("k8s/base/deployment.yaml").read_text("utf-8"))
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == f"{MEMORY // 2**20}Mi"


async def test_each_call_gets_into_the_books():
    """Also one whose client's own process has cancelled it, or failed: neither is a status."""
    ledger = Ledger()
    for error in (asyncio.CancelledError("the channel was closed"), KeyError("id")):
        with pytest.raises(type(error)):
            async with ledger.call("dns", "GetUser", 1):
                raise error
    assert [(made.code, made.detail) for made in ledger.failed] == [
        ("CancelledError", "the channel was closed"),
        ("KeyError", "'id'"),
    ]
    assert "dns GetUser" in broken(Day(ledger))["codes"]
    assert not ledger.running


def test_failed_calls_of_a_storm_are_no_breach(day):
    """A call that began before the calm may fail, and one that ended in the storm after it."""
    day.ledger.failed += [Made("dns", "GetUser", at, at + 3, at + 1, "UNAVAILABLE") for at in (29.9, 59.1)]
    assert broken(day) == {}
    assert RECOVERY == 10


def test_a_client_that_does_not_run_is_told_later(day):
    """Seconds in which the clients' process stood still are not the service's; those at other times count."""
    late(day)
    day.ledger.stalls = [(2.0, 9.0), (17.0, 20.0)]
    assert "dns GetUser" in broken(day)["deadlines"]
    day.ledger.stalls = [(9.0, 11.0)]
    assert "stood still for 2.0 s" in told_of(day, "deadlines")


def test_recovery_is_told(day):
    """How long calls failed after the last fault is told, though it is less than it may be."""
    assert "quiet in 0-9 s; rolling-restart in 30-60 s, recovered at once before" in told_of(day, "calm")
    day.ledger.failed += [Made("dns", "GetUser", at, at + 3, at + 1, "UNAVAILABLE") for at in (19, 22.5, 21)]
    assert "recovered 2.5 s after the last fault" in told_of(day, "calm")


def told_of(day: Day, name: str) -> str:
    """Return the detail of an invariant that was held."""
    [finding] = [finding for finding in check(day) if finding.name == name]
    assert finding.held
    return finding.detail


def test_many_breaches_are_counted(day):
    """Of many the first five are told, and how many there are."""
    day.ledger.untrue += [f"untrue {n}" for n in range(12)]
    assert broken(day)["true-answers"].endswith("untrue 4; and 7 more")


PROGRAM = """
import asyncio, os, sys
async def tick():
    while True:
        await asyncio.sleep(0.05)
async def main():
    tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(6)]
    tasks.append(asyncio.create_task(tick()))
    files = [os.dup(0) for _ in range(5)]
    print(flush=True)
    await asyncio.gather(*tasks)
asyncio.run(main())
"""


async def test_vitals_of_another_process():
    """Descriptors, threads, tasks and memory of a process are those that it has."""
    # Its own descriptors: three of standard streams, the selector, and the pair that wakes the loop.
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220 (short)
        process.stdout.readline()
        found = await vitals(process.pid)
        peak = peak_memory(process.pid)
        process.kill()
    assert found == Vitals(descriptors=3 + 3 + 5, threads=1, tasks=8)
    assert 2**20 < peak < 2**30


async def test_process_that_stands_still():
    """It does not tell its tasks; all else is known of it."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220 (short)
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        found = await vitals(process.pid)
        process.kill()
    assert found == Vitals(descriptors=3 + 3 + 5, threads=1, tasks=None)


async def test_vitals_of_no_process() -> None:
    """Who has ended has no vitals and no memory."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:  # noqa: ASYNC220 (short)
        pass
    with pytest.raises(ProcessLookupError, match=f"process {process.pid} can't be asked for its tasks"):
        await vitals(process.pid)
    assert peak_memory(process.pid) == 0
    assert peak_memory(os.getpid()) > 0
