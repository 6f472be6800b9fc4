import json
from pathlib import Path

import pytest

from tools.pytest import totals

FINISHED = {"id": {"buildFinished": {}}, "finished": {"exitCode": {"name": "SUCCESS"}}}
PASSED = '<testcase name="test_a"/>'
FAILED = '<testcase name="test_a"><failure message="assert 1 == 2&#10;more"/></testcase>'
SKIPPED = '<testcase name="test_a"><skipped message="needs nginx"/></testcase>'


def completed(label: str, *, success: bool = True) -> dict:
    """Return what Bazel says of a target with tests once it is built."""
    children = [{"testSummary": {"label": label}}] if success else []
    return {
        "id": {"targetCompleted": {"label": label}},
        "children": children,
        "completed": {"success": True} if success else {},
    }


@pytest.fixture
def result(tmp_path: Path):
    """Return what Bazel says of a target's tests."""

    def result(label: str, cases: str, status: str = "PASSED", shard: int = 1, attempt: int = 1) -> dict:
        xml = tmp_path / f"logs of {label.rpartition(':')[2]}" / f"{shard}-{attempt}" / "test.xml"
        xml.parent.mkdir(parents=True)
        xml.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        return {
            "id": {"testResult": {"label": label, "run": 1, "shard": shard, "attempt": attempt}},
            "testResult": {
                "status": status,
                "testActionOutput": [{"name": "test.xml", "uri": xml.as_uri()}],
                "testAttemptDurationMillis": "1500",
            },
        }

    return result


@pytest.fixture
def run(tmp_path: Path, capsys):
    """Return the exit code and the lines for a call with these events."""

    def run(*events: dict) -> tuple[int, list[str]]:
        file = tmp_path / "events.json"
        file.write_text("".join(json.dumps(event) + "\n" for event in events))
        return totals.main(str(file)), capsys.readouterr().out.splitlines()

    return run


def test_passed(run, result):
    """The last line says how many tests there were, those before it which targets took how long."""
    code, lines = run(completed("//a:a"), result("//a:a", PASSED * 3), FINISHED)
    assert code == 0
    assert lines == [
        "2 s of tests in 1 targets, the slowest:",
        "      2 s //a:a",
        "3 passed, 0 failed, 0 skipped",
    ]


def test_failed_and_skipped_are_named(run, result):
    """A test that failed, or was skipped, is named with its target and the first line of why."""
    code, lines = run(completed("//a:a"), result("//a:a", FAILED + SKIPPED, "FAILED"), FINISHED)
    assert code == 1
    assert lines[:2] == ["failed: //a:a: test_a: assert 1 == 2", "skipped: //a:a: test_a: needs nginx"]
    assert lines[-1] == "0 passed, 1 failed, 1 skipped"


def test_shards_are_added_up(run, result):
    """Each shard has a report of its own."""
    shards = [result("//a:a", PASSED, shard=shard) for shard in (1, 2)]
    assert run(completed("//a:a"), *shards, FINISHED)[1][-1] == "2 passed, 0 failed, 0 skipped"


def test_last_attempt_counts(run, result):
    """A target that is run again is counted once."""
    attempts = [result("//a:a", FAILED, "FAILED"), result("//a:a", PASSED, attempt=2)]
    assert run(completed("//a:a"), *attempts, FINISHED)[1][-1] == "1 passed, 0 failed, 0 skipped"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (completed("//b:b", success=False), "failed: //b:b: did not build"),
        (completed("//b:b"), "failed: //b:b: did not run"),
        (
            {
                "id": {"pattern": {"pattern": ["//b"]}},
                "aborted": {"reason": "LOADING_FAILURE", "description": "no such package 'b': no\n - such"},
            },
            "failed: ['//b']: no such package 'b': no",
        ),
    ],
    ids=["does not build", "did not run", "does not load"],
)
def test_target_without_report_fails(run, result, event, line):
    """A target whose tests did not run is a failure, as much as a test that failed."""
    code, lines = run(completed("//a:a"), result("//a:a", PASSED), event, FINISHED)
    assert code == 1
    assert line in lines
    assert lines[-1] == "1 passed, 1 failed, 0 skipped"


def test_timeout_fails(run, result):
    """A target that was stopped has a report without any failure."""
    code, lines = run(completed("//a:a"), result("//a:a", "", "TIMEOUT"), FINISHED)
    assert code == 1
    assert lines[0] == "failed: //a:a: TIMEOUT"


def test_target_of_another_platform_is_no_failure(run, result):
    """What is not compatible with this platform is left out by Bazel itself."""
    skipped = {"id": {"targetCompleted": {"label": "//b:b"}}, "aborted": {"reason": "SKIPPED"}}
    assert run(completed("//a:a"), result("//a:a", PASSED), skipped, FINISHED)[0] == 0


@pytest.mark.parametrize("events", [(), (completed("//a:a"),)], ids=["none", "cut off"])
def test_call_that_did_not_finish_fails(run, events):
    """Nothing is not a success."""
    code, lines = run(*events)
    assert code == 1
    assert any("Bazel did not finish" in line for line in lines)


def test_call_that_did_not_start_fails(tmp_path, capsys):
    """A file that Bazel never wrote is named."""
    assert totals.main(str(tmp_path / "none.json")) == 1
    assert f"see {tmp_path / 'none.json'}" in capsys.readouterr().out


@pytest.mark.parametrize("cut", ['{"id":{"testResult":{"label":"//b:b"}', "{}", "[]", "<html>{}", "\ufeff{}"])
def test_events_that_were_not_written_to_their_end(result, tmp_path, capsys, cut):
    """What Bazel had written when it was killed counts, and that it was killed."""
    file = tmp_path / "cut.json"
    file.write_text(json.dumps(result("//a:a", PASSED)) + "\n" + cut)
    assert totals.main(str(file)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"failed: bazel: Bazel did not finish: see {file}"
    assert lines[-1] == "1 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("content", ["", "<testsuites><testc", None])
def test_reports_that_are_broken(run, result, tmp_path, content):
    """A report that was not written to its end is a failure of its target, and ends no other's count."""
    broken = result("//b:b", PASSED)
    [xml] = (tmp_path / "logs of b").rglob("test.xml")
    xml.unlink()
    if content is not None:
        xml.write_text(content)
    code, lines = run(completed("//b:b"), completed("//a:a"), broken, result("//a:a", PASSED), FINISHED)
    assert code == 1
    assert lines[0].startswith("failed: //b:b: its report can't be read: ")
    assert lines[-1] == "1 passed, 1 failed, 0 skipped"


def test_messages_that_a_terminal_would_obey(run, result):
    """What a test says is shown as it is written."""
    failed = '<testcase name="a"><failure message="&#x9b;2J"/></testcase>'
    _, lines = run(completed("//a:a"), result("//a:a", failed, "FAILED"), FINISHED)
    assert lines[0] == "failed: //a:a: a: \\x9b2J"
