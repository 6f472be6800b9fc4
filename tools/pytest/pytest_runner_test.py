import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("pytest_runner.py")


@pytest.fixture
def run(tmp_path: Path):
    """Run the runner on a file with the given content and under the given filter."""

    def run(content: str, test_filter: str = "") -> subprocess.CompletedProcess[str]:
        file = tmp_path / "some_test.py"
        file.write_text(content)
        return subprocess.run(
            [sys.executable, RUNNER, file],
            env={
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TESTBRIDGE_TEST_ONLY": test_filter,
                "XML_OUTPUT_FILE": str(tmp_path / "test.xml"),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_passing_tests_pass(run):
    """A file whose tests pass exits with 0 and leaves a JUnit report."""
    assert run("def test_a(): pass").returncode == 0


def test_failing_test_fails(run):
    """A failing test makes the target fail."""
    assert run("def test_a(): assert False").returncode == 1


def test_file_without_test_fails(run):
    """A file in which nothing is collected fails and is named."""
    result = run("def helper(): pass")
    assert result.returncode != 0
    assert "no test in some_test.py" in result.stderr + result.stdout


def test_filter_selects(run):
    """--test_filter runs only the tests that match it."""
    content = "def test_a(): pass\ndef test_b(): assert False"
    assert run(content, "test_a").returncode == 0
    assert run(content, "test_b").returncode == 1


def test_filter_for_another_target_passes(run):
    """A filter that matches nothing here is not this target's failure."""
    assert run("def test_a(): assert False", "test_elsewhere").returncode == 0


def test_report(run, tmp_path):
    """Bazel's XML_OUTPUT_FILE gets one entry a test."""
    run("def test_a(): pass\ndef test_b(): pass")
    assert 'tests="2"' in (tmp_path / "test.xml").read_text()


SLOW_EXAMPLE = """
import time
from hypothesis import given, settings, strategies

@settings(max_examples=1)
@given(strategies.none())
def test_a(value): time.sleep(0.3)
"""


def test_slow_example_passes(run):
    """How long an example of Hypothesis takes is the machine's affair."""
    assert run(SLOW_EXAMPLE).returncode == 0
