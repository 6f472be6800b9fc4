import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

TOOLS_BAZEL = Path("tools/bazel").resolve()

FAKE = """#!/bin/sh
echo "$0 skip_wrapper=$BAZELISK_SKIP_WRAPPER $*"
exit 7
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder for PATH with the few programs that tools/bazel itself needs."""
    for name in ("bash", "dirname", "readlink"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def add_program(path: Path, script: str = FAKE) -> Path:
    """Write an executable script."""
    path.write_text(script)
    path.chmod(0o755)
    return path


def run(programs: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `bazel` with tools/ first on a PATH of nothing else but `programs`."""
    environment = {"PATH": f"{TOOLS_BAZEL.parent}:{programs}", "HOME": "/nonexistent"} | variables
    return subprocess.run(["bazel", *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["bazelisk", "bazel"])
def test_bazelisk_on_path_means_public(programs, name):
    """A Bazelisk under either of its names is started with the arguments as they are."""
    fake = add_program(programs / name)
    result = run(programs, "test", "//a b")
    assert result.returncode == 7
    assert result.stdout == f"{fake} skip_wrapper=1 test //a b\n"
    assert result.stderr.startswith(f"tools/bazel: public mode (found {fake};")
    assert result.stderr.count("\n") == 1


def test_started_by_bazelisk(programs):
    """Bazelisk, which runs tools/bazel itself, gets back the Bazel that it chose."""
    real = add_program(programs / "real")
    result = run(programs, "version", BAZEL_REAL=str(real))
    assert result.stdout.startswith(f"{real} ")
    assert "Bazelisk started it" in result.stderr


def test_public_mode_without_bazelisk(programs):
    """Forced to the public mode, it says what is missing; itself on PATH does not count."""
    result = run(programs, "build", BAZEL_MODE="public")
    assert result.returncode == 2
    assert "needs Bazelisk on PATH" in result.stderr


def test_closed_mode_without_bazelisk(programs):
    """Without a Bazelisk it goes the way of the closed network, and says why."""
    result = run(programs, "build")
    assert "closed mode (no bazelisk on PATH;" in result.stderr


def test_closed_mode_forced(programs):
    """BAZEL_MODE=closed leaves a Bazelisk that is there alone."""
    add_program(programs / "bazelisk")
    result = run(programs, "build", BAZEL_MODE="closed")
    assert "closed mode (BAZEL_MODE says so;" in result.stderr
    assert result.stdout == ""


def test_unknown_mode(programs):
    """A mode that does not exist is refused with those that do."""
    result = run(programs, "build", BAZEL_MODE="offline")
    assert result.returncode == 2
    assert "'offline'; it must be 'public' or 'closed'" in result.stderr


def test_signal_passes_through(programs):
    """TERM reaches Bazel itself, since no process stands between."""
    real = add_program(programs / "real", "#!/bin/sh\necho ready\nexec sleep 60\n")
    environment = os.environ | {"BAZEL_REAL": str(real), "BAZEL_MODE": "public"}
    with subprocess.Popen([TOOLS_BAZEL], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
