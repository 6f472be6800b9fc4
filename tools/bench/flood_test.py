import json
import subprocess

COMMAND = ["tools/bench/flood", "--seconds", "0.3"]
ATTACKS = ["more connections than allowed"]


def run(*arguments):
    """Run the command."""
    return subprocess.run([*COMMAND, *arguments], check=False, capture_output=True, text=True)


def test_attacks_break_no_limit(tmp_path):
    """Table and file have each attack on each engine, and the server held."""
    file = tmp_path / "flood.json"
    chosen = [argument for attack in ATTACKS for argument in ("--attack", attack)]
    ended = run(*chosen, "--json", file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [[cell.strip() for cell in line.split("│")] for line in ended.stdout.splitlines() if "│" in line]
    expected = [
        (engine, attack) for engine in ("completion-queue", "grpc-aio") for attack in ("no attack", *ATTACKS)
    ]
    assert [(row[1], row[2]) for row in rows] == expected
    results = json.loads(file.read_text())["results"]
    assert [(result["engine"], result["attack"]) for result in results] == expected
    assert all(result["calls"] and result["p99"] > 0 and result["memory"] > 50 for result in results)


def test_broken_limit_ends_the_command_with_1(tmp_path):
    """A pod of 1 MiB would not have held, and the table says so."""
    file = tmp_path / "flood.json"
    quiet = ["--engine", "grpc-aio", "--attack", "GOAWAY"]
    ended = run(*quiet, "--memory", "1", "--json", file)
    assert ended.returncode == 1
    assert "of 1 MiB" in ended.stdout
    assert json.loads(file.read_text())["results"][0]["broken"]


def test_known_attack_is_shown_and_fails_nothing():
    """What C-core has no limit for takes more than a pod of 130 MiB, which the table calls known."""
    ended = run("--engine", "grpc-aio", "--attack", "headers without end", "--memory", "130")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "known: memory:" in ended.stdout


def test_attack_that_is_not_there():
    """What can be chosen is said."""
    ended = run("--attack", "boredom")
    assert ended.returncode == 2
    assert "there is no attack boredom" in ended.stderr
    assert "calls that are reset" in ended.stderr


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    """Nothing is attacked for it."""
    ended = run("--json", tmp_path / "missing/flood.json")
    assert ended.returncode == 2
    assert "missing/flood.json can't be written: No such file or directory" in ended.stderr
    assert ended.stdout == ""
