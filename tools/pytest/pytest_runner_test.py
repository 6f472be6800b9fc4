import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("pytest_runner.py")


@pytest.fixture
def run(tmp_path: Path):
    """Run the runner on a file with the given content, under the given filter and variables."""

    def run(content: str, test_filter: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "some_test.py"
        file.write_text(content)
        return subprocess.run(
            [sys.executable, RUNNER, file],
            env={
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TESTBRIDGE_TEST_ONLY": test_filter,
                "XML_OUTPUT_FILE": str(tmp_path / "test.xml"),
                **variables,
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


SKIPPING = {
    "a mark": "import pytest\n@pytest.mark.skipif(True, reason='needs nginx')\ndef test_a(): pass",
    "a call": "import pytest\ndef test_a(): pytest.skip('needs nginx')",
    "a fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('needs nginx')\ndef test_a(f): pass",
    "a module": "import pytest\npytest.skip('needs nginx', allow_module_level=True)\ndef test_a(): pass",
    "an import": "import pytest\npytest.importorskip('nginx', reason='needs nginx')\ndef test_a(): pass",
    "a failure that is expected, of a test that does not run": (
        "import pytest\n@pytest.mark.xfail(run=False, reason='needs nginx')\ndef test_a(): assert False"
    ),
    "a failure that is expected half-way": "import pytest\ndef test_a(): pytest.xfail('needs nginx')",
    "unittest": (
        "import unittest\nclass A(unittest.TestCase):\n    def test_a(self): self.skipTest('needs nginx')"
    ),
    "a file of unittest": "import unittest\nraise unittest.SkipTest('needs nginx')\ndef test_a(): pass",
}


@pytest.mark.parametrize("content", SKIPPING.values(), ids=SKIPPING)
def test_skip_fails_where_all_is_required(run, tmp_path, content):
    """With REQUIRE_ALL=1 a skipped test is a failure that says what it needs, in the JUnit report too."""
    result = run(content, REQUIRE_ALL="1")
    assert result.returncode != 0
    assert "needs nginx" in result.stdout
    assert "REQUIRE_ALL=1" in result.stdout
    assert "<skipped" not in (tmp_path / "test.xml").read_text()


@pytest.mark.parametrize("value", ["", "0"])
def test_skip_passes_elsewhere(run, value):
    """On a developer's machine a test may lack its program."""
    assert run(SKIPPING["a call"], REQUIRE_ALL=value, PYTEST_MAY_SKIP="1").returncode == 0


def test_skip_needs_a_target_that_is_not_cached(run):
    """A test that may be skipped uses the machine's programs, so that no cache may answer for it."""
    result = run(SKIPPING["a call"])
    assert result.returncode != 0
    assert 'its target needs the tag "no-cache": needs nginx' in result.stdout


def test_expected_failure_is_no_skip(run):
    """A test that is known to fail ran, so that it is none of those that REQUIRE_ALL refuses."""
    content = "import pytest\n@pytest.mark.xfail(reason='a bug')\ndef test_a(): assert False"
    assert run(content, REQUIRE_ALL="1").returncode == 0


FIVE = (
    "import pytest\n@pytest.mark.parametrize('number', range(5))\ndef test_a(number): print(f'ran {number}.')"
)


def run_shard(run, tmp_path, index: int, total: int, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shard of FIVE; Bazel wants its file touched by a runner that shards."""
    status = tmp_path / f"status{index}"
    result = run(
        FIVE,
        TEST_TOTAL_SHARDS=str(total),
        TEST_SHARD_INDEX=str(index),
        TEST_SHARD_STATUS_FILE=str(status),
        PYTEST_ADDOPTS="-s",
        **variables,
    )
    assert status.exists()
    return result


def test_shards_share_the_tests(run, tmp_path):
    """Each test runs in one shard."""
    output = [run_shard(run, tmp_path, index, 2).stdout for index in range(2)]
    for number in range(5):
        assert sorted(shard.count(f"ran {number}.") for shard in output) == [0, 1]


def test_shard_without_test_passes(run, tmp_path):
    """More shards than tests are no failure."""
    assert run_shard(run, tmp_path, 6, 7).returncode == 0


def test_shards_share_what_the_filter_leaves(run, tmp_path):
    """The filter comes before the shards, so that it does not leave one of them everything."""
    filtered = [
        run_shard(run, tmp_path, index, 2, TESTBRIDGE_TEST_ONLY="2 or 4").stdout for index in range(2)
    ]
    assert [output.count("ran ") for output in filtered] == [1, 1]


def test_file_without_test_fails_in_every_shard(run):
    """A file that holds no test is not taken for one whose tests are all other shards'."""
    result = run("def helper(): pass", TEST_TOTAL_SHARDS="2", TEST_SHARD_INDEX="1")
    assert result.returncode != 0
    assert "no test in some_test.py" in result.stderr + result.stdout
