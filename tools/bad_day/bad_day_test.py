import os
import re
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tools.bad_day.faults import EVENTS, FAULTS
from tools.bad_day.hostile import FLOODS, SILENT
from tools.bad_day.plan import HOSTILE, KINDS, PLANNED
from tools.lab.report.model import read

COMMAND = Path("tools/bad_day/bad_day").absolute()

SEED = 1
"""Its two minutes have all kinds of faults."""

PATIENCE = 600
"""Seconds for two minutes and what starts before them, on a busy machine."""


def run(*options: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run([COMMAND, *options], capture_output=True, text=True, check=False, timeout=seconds)


def test_invariants_hold_on_a_bad_day(tmp_path: Path) -> None:
    """Whatever happens in two minutes, no user is lost, each call ends, and calm times fail nothing."""
    files = [tmp_path / "day.html", tmp_path / "day.json"]
    day = run("--seed", str(SEED), "--minutes", "2", "--html", str(files[0]), "--json", str(files[1]))
    print(day.stdout)
    assert day.returncode == 0, day.stderr + day.stdout
    report = read(files[1])
    assert all(each["held"] for each in report["invariants"])
    assert len(report["invariants"]) == day.stdout.count("\nheld  ")
    assert {event["name"] for event in report["events"] if not event["planned"]} == {*KINDS}
    assert len([event for event in report["events"] if event["planned"]]) == 2
    assert report["runs"][0]["figures"]["failed_planned"] == 0
    assert f"--seed={SEED}" in files[0].read_text("utf-8")


@contextmanager
def begun(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command, whose day has begun when the block does, with its temporary files in a folder."""
    variables = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [COMMAND, "--minutes", "0.5", "--seed", str(SEED)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as day:
        assert day.stdout
        assert day.stderr
        lines = iter(day.stdout.readline, b"")
        assert next((line for line in lines if b"calls/s" in line), None), day.stderr.read().decode()
        assert len(processes(tmp_path)) >= 3 + 2 + 4  # servers, PostgreSQLs, all others
        yield day


def processes(folder: Path) -> list[int]:
    """Return all processes that have their temporary files in a folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if f"TMPDIR={folder}".encode() in (each / "environ").read_bytes().split(b"\0"):
                found.append(int(each.name))
    return found


def test_sigterm_ends_all_that_was_started(tmp_path: Path) -> None:
    """Neither a process nor a file nor a mounted disk is left of a day that is ended in its middle."""
    with begun(tmp_path) as day:
        day.terminate()
        _, said = day.communicate(timeout=PATIENCE)
    assert said.decode().endswith("Aborted!\n")
    assert day.returncode == 1
    assert processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_no_process_outlives_a_day_that_was_killed(tmp_path: Path) -> None:
    """All of them end by themselves when nobody is there any more who could end them."""
    with begun(tmp_path) as day:
        day.kill()
        for pid in processes(tmp_path):
            with suppress(ProcessLookupError):
                assert select.select([os.pidfd_open(pid)], [], [], PATIENCE)[0], pid
    assert processes(tmp_path) == []


def test_what_is_planned_can_be_brought_about() -> None:
    """There is a function for each kind of fault and each event of a plan, and none that no plan has."""
    assert FAULTS.keys() == KINDS.keys()
    assert {*EVENTS} == {*PLANNED}
    assert {*FLOODS, SILENT} == {*HOSTILE}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        *((["--minutes", minutes], "--minutes") for minutes in ("0", "-1", "1e9", "nan", "inf", "two")),
        *((["--seed", seed], "--seed") for seed in ("x", "1.5", "-1", "9" * 20, "9" * 5000)),
        (["--engine", "go"], "--engine"),
        (["--html", "/proc/day.html"], "--html"),
        (["--json", "missing/day.json"], "--json"),
    ],
)
def test_wrong_usage(options: list[str], what: str) -> None:
    """Who asks for what there is not is told which option is wrong, and no day begins."""
    day = run(*options, seconds=60)
    assert day.returncode == 2
    assert re.search(rf"Invalid value for '{what}'", day.stderr)
    assert "The plan" not in day.stdout
