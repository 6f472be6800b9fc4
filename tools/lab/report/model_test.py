import json

import pytest

from tools.lab.report.model import read
from tools.lab.report.testing_report import bad_day, lab


def without(report, *path):
    """Return the report without a part of it."""
    part = report
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]
    return report


def with_value(report, value, *path):
    """Return the report with another value somewhere."""
    part = report
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return report


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ([], "the report: "),
        (lab() | {"version": 2}, "version: Input should be 1"),
        (lab() | {"runs": []}, "runs: List should have at least 1 item"),
        (without(lab(), "runs", 1, "pods", 2, "from"), "runs[1].pods[2].from: Field required"),
        (with_value(lab(), "x", "runs", 0, "samples", 3, "p99"), "runs[0].samples[3].p99: Input should be"),
        (with_value(lab(), -1, "runs", 0, "samples", 3, "calls", "pod-1"), "samples[3].calls.pod-1: Input"),
        (with_value(lab(), 0.5, "runs", 0, "samples", 3, "at"), "samples[3] is at 0.5, not later than 1.5"),
        (with_value(lab(), {"pod-99": 1}, "runs", 0, "samples", 3, "calls"), "not in pods: pod-99"),
        (with_value(lab(), 1.0, "events", 0, "until"), "events[0]: Value error, it ends at 1.0, before it"),
        (with_value(lab(), 1e300, "runs", 0, "duration"), "runs[0].duration: Input should be less than"),
        (with_value(lab(), 10**400, "runs", 0, "phases", 0, "calls"), "calls: Input should be less than"),
        (with_value(lab(), "pod-1", "runs", 0, "pods", 1, "name"), "several pods have the same name"),
        (bad_day() | {"invariants": []}, "a bad day has a seed and invariants"),
        (bad_day() | {"seed": None}, "a bad day has a seed and invariants"),
    ],
)
def test_what_is_no_report_is_refused_with_the_place(tmp_path, report, message):
    """The message says of each part that is wrong where it is, and what would be right."""
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="it is no report of the lab or of a bad day:\n") as refused:
        read(tmp_path / "report.json")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{\n"version": 1,,\n}', "line 2"),
        (b"\xff\xfe\x00", ""),
        (b'{"setting": {"minutes": NaN}}', "NaN is no number"),
        (b'{"setting": {"minutes": -Infinity}}', "-Infinity is no number"),
        (b"[" * 10**6, "(recursion|Stack overflow)"),
        (b"1" * 5000, "digits"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, content, why):
    """The message has the line; what other readers refuse is refused as well, and bytes that are no text."""
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"it is no JSON: .*{why}"):
        read(tmp_path / "report.json")


@pytest.mark.parametrize(
    "report",
    [
        with_value(lab(), {"\x1b[31m": 1}, "runs", 0, "samples", 3, "calls"),
        with_value(lab(), {"\x1b[31m": -1}, "runs", 0, "samples", 3, "calls"),
    ],
)
def test_a_name_that_would_steer_the_terminal_is_shown_escaped(tmp_path, report):
    """The message is for one, and reports come from elsewhere."""
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"\\x1b\[31m") as refused:
        read(tmp_path / "report.json")
    assert "\x1b" not in str(refused.value)


def test_what_is_nested_without_end_is_refused(tmp_path):
    """It is no JSON that anybody has written."""
    (tmp_path / "report.json").write_text(1_000_000 * "[")
    with pytest.raises(ValueError, match="it is no JSON: "):
        read(tmp_path / "report.json")


@pytest.mark.parametrize("report", [lab(), bad_day()], ids=["lab", "bad-day"])
def test_a_report_is_read_as_it_was_written(tmp_path, report):
    """Also where it has figures and times that are None."""
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert read(tmp_path / "report.json") == report
