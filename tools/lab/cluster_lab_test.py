import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.cluster import cluster

STORY = """\
pods: 2
rate: 10
max_connection_age: 3s
events:
  - {at: 2s, do: scale, pods: 3}
  - {at: 6s, do: roll}
  - {at: 14s, do: scale, pods: 2}
until: 17s
"""

OURS = ["kubernetes-round-robin", "kubernetes-least-request"]

COMMAND = [sys.executable, "-m", "tools.lab.lab", "--cluster"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module", autouse=True)
def kubernetes():
    """Return the version that tools/cluster has built."""
    try:
        return cluster.programs().name.split("-")[1]
    except cluster.MissingProgramError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Play a short story with a real API server, and return what the lab tells of it."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "story.yaml").write_text(STORY)
    options = [*(f"--strategy={name}" for name in OURS), f"--json={folder}/report.json"]
    command = [*COMMAND, f"--story={folder}/story.yaml", *options]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=240)
    return json.loads((folder / "report.json").read_text())


def test_report_says_which_api_server(report, kubernetes):
    """It has the version that was built."""
    assert report["setting"]["API server"] == f"kube-apiserver {kubernetes}"


@pytest.mark.parametrize("number", range(len(OURS)), ids=OURS)
def test_calls_follow_the_pods(report, number):
    """New pods get calls, those that end lose them in time, and no planned event fails one."""
    run = report["runs"][number]
    assert run["name"] == OURS[number]
    assert run["figures"]["failed_planned"] == 0, run["phases"]
    assert run["figures"]["new_pod_seconds"] <= 1 + 5 * run["figures"]["p99"]
    called = {pod for sample in run["samples"] for pod in sample["calls"]}
    assert called == {pod["name"] for pod in run["pods"]}
    assert len(called) == 2 + 1 + 3


def test_end_while_it_starts_leaves_nothing(tmp_path):
    """With SIGTERM before the story begins, the API server and its files go too."""
    with subprocess.Popen(
        COMMAND, env=ENVIRONMENT | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True
    ) as lab:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("cluster-*/kube-apiserver.log")):
            assert time.monotonic() < end
            time.sleep(0.05)
        lab.terminate()
        _, said = lab.communicate()
    assert (lab.returncode, said) == (1, "\nAborted!\n")
    assert list(tmp_path.iterdir()) == []
    assert not [file for file in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in told(file)]


def told(file):
    """Return what a file of /proc says."""
    try:
        return file.read_text()
    except OSError:  # the process has ended
        return ""
