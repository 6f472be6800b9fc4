import json
import os
import subprocess
import sys

import pytest

from tools.cluster import cluster

STORY = """\
pods: 2
rate: 30
max_connection_age: 3s
events:
  - {at: 2s, do: scale, pods: 3}
  - {at: 6s, do: roll}
  - {at: 14s, do: scale, pods: 2}
until: 17s
"""

OURS = ["kubernetes-round-robin", "kubernetes-least-request"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Play a short story with a real API server, and return what the lab tells of it."""
    try:
        cluster.programs()
    except cluster.MissingProgramError as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("lab")
    (folder / "story.yaml").write_text(STORY)
    options = [*(f"--strategy={name}" for name in OURS), f"--json={folder}/report.json"]
    subprocess.run(
        [sys.executable, "-m", "tools.lab.lab", "--cluster", f"--story={folder}/story.yaml", *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=240,
    )
    return json.loads((folder / "report.json").read_text())


def test_report_says_which_api_server(report):
    """It has the version that tools/cluster has built."""
    kubernetes = cluster.programs().name.split("-")[1]
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
