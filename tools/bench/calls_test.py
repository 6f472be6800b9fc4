import json
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
    file = tmp_path / "calls.json"
    printed = subprocess.run([*COMMAND, "--json", file], check=True, capture_output=True, text=True).stdout
    rows = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines() if "│" in line]
    assert [(row[1], row[2]) for row in rows] == WAYS
    assert [row[4] for row in rows if row[2] == PLAIN] == ["1.00x", "1.00x"]
    results = json.loads(file.read_text())["results"]
    assert [(result["side"], result["name"]) for result in results] == WAYS
    numbers = ("calls_per_second", "p50", "p99", "cpu", "ratio", "cpu_ratio")
    assert all(result[number] > 0 for result in results for number in numbers)
