import re
import subprocess
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
    assert f"--seed {SEED}" in files[0].read_text("utf-8")


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
