import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

STORY = """\
pods: 2
rate: 40
max_connection_age: 3s
events:
  - {at: 4s, do: scale, pods: 3}
  - {at: 9s, do: slow, delay: 20ms, for: 2s}
  - {at: 14s, do: roll}
  - {at: 22s, do: kill}
  - {at: 26s, do: scale, pods: 2}
until: 29s
"""

SHORT = """\
pods: 2
rate: 20
max_connection_age: 3s
events:
  - {at: 2s, do: scale, pods: 3}
until: 8s
"""

OURS = ["kubernetes-round-robin", "kubernetes-least-request"]
ONE_CONNECTION = "pick-first-max-age"

COMMAND = [sys.executable, "-m", "tools.lab.lab"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Play a short story for three strategies, and return what the lab tells of it."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "story.yaml").write_text(STORY)
    chosen = [f"--strategy={name}" for name in [*OURS, ONE_CONNECTION]]
    files = [f"--story={folder}/story.yaml", f"--json={folder}/report.json"]
    drawn = [f"--html={folder}/report.html", f"--picture={folder}/report.svg"]
    subprocess.run([*COMMAND, *chosen, *files, *drawn], env=ENVIRONMENT, check=True, timeout=240)
    assert "<svg" in (folder / "report.html").read_text("utf-8")
    assert (folder / "report.svg").read_text("utf-8").startswith("<svg ")
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def runs(report):
    """Return the runs by name."""
    return {run["name"]: run for run in report["runs"]}


def test_report_tells_the_story(report):
    """The report has the strategies, and the events in their order, none of them over another."""
    assert (report["version"], report["kind"], report["skipped"]) == (1, "lab", [])
    assert {run["name"] for run in report["runs"]} == {*OURS, ONE_CONNECTION}
    names = [event["name"] for event in report["events"]]
    assert names == ["scale-up", "slow-pod", "rolling-restart", "killed", "scale-down"]
    for event, following in zip(report["events"], report["events"][1:], strict=False):
        assert event["at"] < event["until"] < following["at"]


@pytest.mark.parametrize("name", [*OURS, ONE_CONNECTION])
def test_every_call_is_told_once(runs, name):
    """Samples and phases have the same calls: each is a pod's, or has failed."""
    run = runs[name]
    told = [*(sum(sample["calls"].values()) for sample in run["samples"])]
    failed = [*(sum(sample["failed"].values()) for sample in run["samples"])]
    calls = sum(phase["calls"] for phase in run["phases"])
    # The last sample ends before the story does.
    assert calls - 40 <= sum(told) + sum(failed) <= calls
    assert calls > 40 * 29 / 2
    assert sum(failed) <= run["figures"]["failed_planned"] + run["figures"]["failed_unplanned"]
    assert {pod for sample in run["samples"] for pod in sample["calls"]} <= {
        pod["name"] for pod in run["pods"]
    }


@pytest.mark.parametrize("name", OURS)
def test_no_planned_event_fails_a_call(runs, name):
    """While pods come, are replaced and go, and whenever connections age, every call succeeds."""
    assert runs[name]["figures"]["failed_planned"] == 0, runs[name]["phases"]


def test_round_robin_is_even(runs):
    """In every steady phase the calls of kubernetes:/// are even over the pods."""
    steady = [phase for phase in runs["kubernetes-round-robin"]["phases"] if phase["event"] is None]
    assert len(steady) == 6
    assert min(phase["jain"] or 0 for phase in steady) >= 0.99, steady


@pytest.mark.parametrize("name", OURS)
def test_new_pod_is_served_within_a_second(runs, name):
    """A pod that becomes ready has its share a second later, or what the machine itself is late."""
    figures = runs[name]["figures"]
    assert figures["new_pod_seconds"] <= 1 + 5 * figures["p99"]


def test_slow_pod_is_seen(runs):
    """Calls to the slow pod take what its way to the database does, both ways."""
    for run in runs.values():
        if run["name"] in OURS:
            assert run["figures"]["p99_slow_pod"] >= 0.04


def test_one_connection_is_told_from_many(runs):
    """With one connection at a time two pods at most are called in half a second, else all."""
    [begin] = [p["to"] for p in runs[ONE_CONNECTION]["phases"] if p["event"] == "scale-up"]
    [end] = [p["from"] for p in runs[ONE_CONNECTION]["phases"] if p["event"] == "slow-pod"]

    def pods_called(name):
        return [len(s["calls"]) for s in runs[name]["samples"] if begin + 0.5 <= s["at"] <= end]

    assert max(pods_called(ONE_CONNECTION)) <= 2
    assert max(pods_called("kubernetes-round-robin")) == 3


def test_edges_follow_the_pods(tmp_path):
    """Calls through each proxy of the overlays come to a new pod, and none fails meanwhile."""
    (tmp_path / "story.yaml").write_text(SHORT)
    edges = ["traefik", "nginx", "envoy"]
    options = [*(f"--strategy={name}" for name in edges), f"--json={tmp_path}/report.json"]
    command = [*COMMAND, f"--story={tmp_path}/story.yaml", *options]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=240)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["skipped"] == []
    for run in report["runs"]:
        assert run["figures"]["failed_planned"] == 0, run
        assert run["figures"]["new_pod_seconds"] is not None, run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--strategy=carrier-pigeon"], "'carrier-pigeon' is not one of 'pick-first', "),
        (["--story=no-such.yaml"], "no-such.yaml: No such file or directory"),
        (["--story=."], ".: Is a directory"),
        (["--story=mine.yaml", "--quick"], "say one of the two"),
        (["--html=no-such/report.html"], "no-such/report.html can't be written: No such file or directory"),
    ],
)
def test_bad_options(options, told):
    """What is wrong with an option is told without a traceback."""
    ended = subprocess.run(
        [*COMMAND, *options], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_the_real_api_server(tmp_path):
    """Who has not built it is told how, before anything is played."""
    environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path)}
    ended = subprocess.run(
        [*COMMAND, "--cluster"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"Error: there is no {tmp_path}/")
    assert ended.stderr.endswith(": run tools/cluster/build.sh once (it needs Go)\n")


def marked(mark):
    """Return the processes with a mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"MARK={mark}".encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found


def ctrl_c(lab):
    """Do as a terminal does: all its programs hear of it."""
    os.killpg(lab.pid, signal.SIGINT)


@pytest.mark.parametrize("end", [subprocess.Popen.terminate, ctrl_c])
def test_end_in_the_middle_leaves_nothing(tmp_path, end):
    """With SIGTERM or Ctrl-C the lab ends, without a traceback, a process or a file that stays."""
    (tmp_path / "story.yaml").write_text(STORY)
    (tmp_path / "files").mkdir()
    chosen = [f"--strategy={name}" for name in ("kubernetes-round-robin", "traefik", "nginx", "envoy")]
    with subprocess.Popen(
        [*COMMAND, f"--story={tmp_path}/story.yaml", *chosen],
        env=ENVIRONMENT | {"MARK": str(tmp_path), "TMPDIR": f"{tmp_path}/files"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as lab:
        assert lab.stdout
        assert lab.stdout.readline().startswith("lab: ")
        assert len(marked(tmp_path)) > 2
        end(lab)
        _, said = lab.communicate()
    assert lab.returncode == 1
    assert said.splitlines()[-1:] == ["Aborted!"]
    assert "Traceback" not in said
    assert marked(tmp_path) == []
    assert list((tmp_path / "files").iterdir()) == []
