import json
import os
import subprocess

COMMAND = ["tools/bench/calls", "--callers", "2", "--seconds", "0.05", "--rounds", "2"]
PLAIN = "plain grpc.aio"
WAYS = [
    ("server", PLAIN),
    ("server", "log level info"),
    ("server", "log level warning"),
    ("server", "... and tracing, rate 0"),
    ("client", PLAIN),
    ("client", "grpc_common.channel"),
]


def test_each_way_is_measured(tmp_path):
    """Table and file have all ways of both sides, each compared with the plain way of its side."""
    environment = os.environ | {"BUILD_WORKING_DIRECTORY": str(tmp_path)}
    command = [*COMMAND, "--json", "calls.json"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    rows = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines() if "│" in line]
    assert [(row[1], row[2]) for row in rows] == WAYS
    assert [row[4] for row in rows if row[2] == PLAIN] == ["1.00x", "1.00x"]
    results = json.loads((tmp_path / "calls.json").read_text())["results"]
    assert [(result["side"], result["name"]) for result in results] == WAYS
    numbers = ("calls_per_second", "p50", "p99", "cpu", "ratio", "cpu_ratio")
    assert all(result[number] > 0 for result in results for number in numbers)


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    """Nothing is measured for it."""
    command = [*COMMAND, "--json", tmp_path / "missing/calls.json"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "missing/calls.json can't be written: No such file or directory" in ended.stderr
    assert ended.stdout == ""
