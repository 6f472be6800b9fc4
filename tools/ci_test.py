import json
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(".ci/run").resolve()
TOTALS = Path("tools/pytest/totals.py").resolve()

PROGRAMS = ("build.sh", "crds.sh", "control-planes.sh")
"""Of tools/cluster, which make what the tests with the tag "external" need."""

BAZEL = """#!/bin/bash
echo "${PWD##*/} REQUIRE_ALL=$REQUIRE_ALL $*" | sed 's/--build_event_json_file=[^ ]* //' >>"$CALLS"
for argument; do
    case $argument in
        --build_event_json_file=*) cat "$EVENTS" >"${argument#*=}" ;;
    esac
done
case $* in *"$FAILING"*) exit 3 ;; esac
"""


def script(path: Path, content: str) -> None:
    """Write a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


class Machine:
    """A work tree with the real .ci/run, whose other programs only note that they were called."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.tree = folder / "tree"
        self.programs = folder / "bin"
        for file in (RUN, TOTALS):
            copy = self.tree / file.relative_to(RUN.parents[1])
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        for workspace in (self.tree, self.tree / "examples/consumer"):
            script(workspace / "tools/bazel", BAZEL)
        for name in PROGRAMS:
            self.make(f"tools/cluster/{name}")
        events = folder / "events.json"
        report = folder / "test.xml"
        report.write_text('<testsuite><testcase name="test_a"/></testsuite>')
        result = {
            "id": {"testResult": {"label": "//a:a"}},
            "testResult": {
                "status": "PASSED",
                "testActionOutput": [{"name": "test.xml", "uri": report.as_uri()}],
                "testAttemptDurationMillis": "1",
            },
        }
        finished = {"id": {"buildFinished": {}}, "finished": {}}
        events.write_text("".join(json.dumps(event) + "\n" for event in (result, finished)))
        self.environment = {
            "HOME": str(folder),
            "CALLS": str(self.calls),
            "EVENTS": str(events),
            "FAILING": "nothing",
        }
        self.programs.mkdir()
        for name in ("bash", "cat", "dirname", "mktemp", "nice", "python3", "rm", "sed", "tail"):
            (self.programs / name).symlink_to(str(shutil.which(name)))
        self.environment["PATH"] = str(self.programs)
        self.add_memory(7)

    def make(self, file: str, code: int = 0) -> None:
        """Make a program of the work tree that notes its name and exits with `code`."""
        script(self.tree / file, f'#!/bin/bash\necho {Path(file).name} >>"$CALLS"\nexit {code}\n')

    def add_go(self) -> None:
        """Put a Go on PATH that installs at once."""
        script(self.programs / "go", '#!/bin/bash\necho "go $1" >>"$CALLS"\n')

    def add_memory(self, free: int) -> None:
        """Have so many GiB free for files in memory."""
        script(self.programs / "df", f"#!/bin/bash\nprintf 'Avail\\n%4d\\n' {free}\n")

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run .ci/run to its end."""
        return subprocess.run(
            [self.tree / ".ci/run"],
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls_of_bazel(self) -> list[str]:
        """Return in which folder, and how, Bazel was called."""
        return [line for line in self.calls.read_text().splitlines() if "REQUIRE_ALL" in line]


@pytest.fixture
def machine(tmp_path):
    """Return a machine without Go."""
    return Machine(tmp_path)


def test_without_go_it_ends_at_once(machine):
    """A machine without Go would skip what deploys; it is told what is missing, and nothing runs."""
    result = machine.run()
    assert result.returncode == 2
    assert "Go is not on PATH" in result.stderr
    assert "REQUIRE_ALL=0 .ci/run" in result.stderr
    assert not machine.calls.exists()


def test_without_go_on_request(machine):
    """REQUIRE_ALL=0 goes on without, and the tests hear of it."""
    result = machine.run(REQUIRE_ALL="0")
    assert result.returncode == 0, result.stderr
    assert all("REQUIRE_ALL=0" in call for call in machine.calls_of_bazel())
    assert "build.sh" not in machine.calls.read_text()


def test_everything_runs(machine):
    """All tests run once, with nothing skipped, those of Go's programs when these are there."""
    machine.add_go()
    result = machine.run()
    assert result.returncode == 0, result.stderr
    assert machine.calls_of_bazel() == [
        "tree REQUIRE_ALL=1 test --keep_going --test_tag_filters=-external //...",
        "consumer REQUIRE_ALL=1 test --keep_going //...",
        "tree REQUIRE_ALL=1 test --keep_going --test_tag_filters=external //...",
        "tree REQUIRE_ALL=1 run //tools/lint",
    ]
    calls = machine.calls.read_text().splitlines()
    external = calls.index(machine.calls_of_bazel()[2])
    assert {"go install", "go build", *PROGRAMS} <= set(calls[:external])
    assert "3 passed, 0 failed, 0 skipped" in result.stdout


def test_sandboxes_in_memory(machine):
    """Where there is room for them."""
    machine.add_memory(8)
    machine.run(REQUIRE_ALL="0")
    *tests, lint = machine.calls_of_bazel()
    assert all("--keep_going --sandbox_base=/dev/shm " in call for call in tests)
    assert "sandbox" not in lint


@pytest.mark.parametrize(
    "failing",
    ["--test_tag_filters=-external", "consumer.json", "--test_tag_filters=external", "//tools/lint"],
)
def test_any_failure_fails(machine, failing):
    """A call that fails is the run's failure, and keeps no other from running."""
    machine.add_go()
    assert machine.run(FAILING=failing).returncode == 1
    assert len(machine.calls_of_bazel()) == 4


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_that_does_not_build_fails(machine, program):
    """What the tests of deployments need is a part of what is tested."""
    machine.add_go()
    machine.make(f"tools/cluster/{program}", code=1)
    assert machine.run().returncode == 1
