import datetime as dt
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

FOLDER = Path("tools/closed_network").resolve()

pytestmark = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs root with CAP_SYS_ADMIN, as the closed-network mode itself does",
)

# Stands in for a minute of downloads: makes a small root, with /proc in it meanwhile, and notes that it ran.
FAKE_MMDEBSTRAP = """#!/bin/sh
for last; do case $last in http*) ;; *) folder=$last ;; esac; done
echo "$*" >>"$RUNS"
echo "I: downloading packages with apt..."
mkdir -p "$folder/usr/bin" "$folder/etc" "$folder/proc"
mount -t tmpfs none "$folder/proc" && touch "$folder/proc/1"
echo content >"$folder/usr/bin/bazel"
if [ -e "$HANG" ]; then touch "$HANG.reached"; fi
while [ -e "$HANG" ]; do sleep 0.05; done
umount "$folder/proc"
if [ -e "$FAIL" ]; then echo "E: Failed to fetch the archive"; exit 25; fi
"""


class Machine:
    """A home directory, and a PATH whose mmdebstrap is quick."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.hang, self.fail = (folder / name for name in ("runs", "hang", "fail"))
        programs = folder / "bin"
        programs.mkdir()
        (programs / "mmdebstrap").write_text(FAKE_MMDEBSTRAP)
        (programs / "mmdebstrap").chmod(0o755)
        self.environment = {
            "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder / "home"),
            "RUNS": str(self.runs),
            "HANG": str(self.hang),
            "FAIL": str(self.fail),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start root.sh."""
        return subprocess.Popen(
            [FOLDER / "root.sh", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def root(self, *arguments: str) -> Path:
        """Run root.sh to its end and return the root that it prints."""
        stdout, stderr = (process := self.start(*arguments)).communicate(timeout=30)
        assert process.returncode == 0, stderr
        return Path(stdout.removesuffix("\n"))

    def times_made(self) -> int:
        """Return how often a root was made."""
        return sum("--variant=apt" in run for run in self.commands())

    def commands(self) -> list[str]:
        """Return what mmdebstrap was called with."""
        return self.runs.read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    """Return a machine on which no root has been made."""
    return Machine(tmp_path)


def test_root_is_made_once(machine):
    """The first call makes the root under the cache directory, the second finds it."""
    root = machine.root()
    assert root.parent == Path(machine.environment["HOME"], ".cache/grpc-on-kubernetes")
    assert (root / "usr/bin/bazel").exists()
    assert machine.root() == root
    assert machine.times_made() == 1


def test_other_architecture_is_unpacked(machine):
    """What images of the other architecture hold is in the root too, unpacked by no program of theirs."""
    foreign = "amd64" if platform.machine() == "aarch64" else "arm64"
    assert (machine.root() / "foreign" / foreign / "usr/bin/bazel").exists()
    command = machine.commands()[-1]
    assert "--variant=extract" in command
    assert f"--architectures={foreign}" in command


def test_root_is_renewed_by_one_command(machine):
    """--renew makes another root with today's packages, which the next call takes; the one before stays."""
    first = machine.root()
    second = machine.root("--renew")
    assert first != second == machine.root()
    assert first.exists()
    assert machine.times_made() == 2


def test_age_is_told(machine):
    """Each call says of which day the root is, and how to get a newer one."""
    today = dt.datetime.now(dt.UTC).date()
    for _ in range(2):
        _, stderr = machine.start().communicate(timeout=30)
        days = {f"installed on {today - dt.timedelta(days)}" for days in (0, 1)}
        assert any(day in stderr for day in days), "or of yesterday, at midnight"
        assert "root.sh --renew" in stderr


def test_snapshot_pins_the_archive(machine):
    """A time of Debian's archive is one setting; a root of another time is another root."""
    unpinned = machine.root()
    machine.environment["DEBIAN_SNAPSHOT"] = "20261128T000000Z"
    pinned = machine.root()
    assert pinned != unpinned
    commands = [command for command in machine.commands() if "snapshot.debian.org" in command]
    assert len(commands) == 2
    assert all(
        command.endswith(" https://snapshot.debian.org/archive/debian/20261128T000000Z/")
        for command in commands
    )
    assert machine.root() == pinned
    del machine.environment["DEBIAN_SNAPSHOT"]
    assert machine.root() == unpinned


def test_unknown_argument_is_refused(machine):
    """A misspelt --renew does not pass for a call without it."""
    process = machine.start("--renw")
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 1


def test_cache_directory_follows_the_standard(machine, tmp_path):
    """XDG_CACHE_HOME is respected."""
    machine.environment["XDG_CACHE_HOME"] = str(tmp_path / "elsewhere")
    assert machine.root().is_relative_to(tmp_path / "elsewhere")


def test_progress_is_shown(machine):
    """While it works it says what it installs, how far it is and how long it took."""
    began = time.monotonic()
    _, stderr = machine.start().communicate(timeout=30)
    assert "making a Debian root with bazel-bootstrap" in stderr
    assert "downloading packages" in stderr
    [seconds] = re.findall(r"ready after (\d+) s", stderr)
    assert int(seconds) <= time.monotonic() - began + 1


def test_roots_of_other_versions_are_named(machine):
    """Who updates the repository learns which roots take up space for nothing."""
    older = Path(machine.environment["HOME"], ".cache/grpc-on-kubernetes/root-of-last-year")
    older.mkdir(parents=True)
    _, stderr = machine.start().communicate(timeout=30)
    assert "may be removed once nothing uses them: root-of-last-year\n" in stderr
    assert older.exists()


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_broken_root_is_made_again(machine, damage):
    """A file that is gone or has lost its content is noticed at the next call."""
    file = machine.root() / "usr/bin/bazel"
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(b"")
    assert (machine.root() / "usr/bin/bazel").read_text() == "content\n"
    assert machine.times_made() == 2


def test_half_made_root_is_made_again(machine):
    """A root whose making was killed is made again, and what was mounted in it is in nobody's way."""
    machine.hang.touch()
    process = machine.start()
    wait_for(machine.hang.with_suffix(".reached"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    machine.hang.unlink()
    assert (machine.root() / "usr/bin/bazel").exists()
    assert machine.times_made() == 2


def test_two_shells_make_one_root(machine):
    """The shell that comes second waits for the first and uses its root."""
    machine.hang.touch()
    first = machine.start()
    wait_for(machine.hang.with_suffix(".reached"))
    second = machine.start()
    assert "another shell is making the Debian root" in second.stderr.readline()
    machine.hang.unlink()
    assert first.communicate(timeout=30)[0] == second.communicate(timeout=30)[0] != ""
    assert machine.times_made() == 1


def test_failure_is_explained(machine):
    """A mirror that does not answer leaves no root, and a message with the reason and the log."""
    machine.fail.touch()
    process = machine.start()
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (1, "")
    assert "E: Failed to fetch the archive" in stderr
    assert "DEBIAN_MIRROR=URL" in stderr
    machine.fail.unlink()
    assert machine.root().exists()


def settings(machine) -> str:
    """Run tools/bazel, which does not get as far as Bazel, and return the settings that Bazel would get."""
    folder = Path(machine.environment["HOME"], ".cache/grpc-on-kubernetes")
    for old in folder.glob("bazelrc-*"):
        old.unlink()
    environment = machine.environment | {"BAZEL_MODE": "closed"}
    subprocess.run([FOLDER.with_name("bazel"), "version"], env=environment, check=False, capture_output=True)
    (written,) = folder.glob("bazelrc-*")
    return written.read_text()


def test_renewed_root_has_tests_run_anew(machine):
    """What a test found with a root's programs says nothing of another root's, nor on another machine."""
    first = settings(machine)
    assert settings(machine) == first
    renewed = FAKE_MMDEBSTRAP.replace("echo content", "echo newer content")
    Path(machine.environment["PATH"].partition(":")[0], "mmdebstrap").write_text(renewed)
    shutil.rmtree(machine.root())
    variables = [
        re.findall(r"^test --test_env=CLOSED_NETWORK_LISTING=([0-9a-f]{12})$", content, re.MULTILINE)
        for content in (first, settings(machine))
    ]
    assert [len(found) for found in variables] == [1, 1]
    assert variables[0] != variables[1]


def test_lock_is_kept_in_the_public_mode(machine):
    """Only the closed network, where no registry is asked, does without MODULE.bazel.lock."""
    assert "common --lockfile_mode=off" in settings(machine).splitlines()
    for workspace in (Path(), Path("examples/consumer")):
        assert "lockfile_mode" not in (workspace / ".bazelrc").read_text()


@pytest.fixture
def root(tmp_path):
    """Return a root with this machine's own programs and an /etc of its own."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "usr").symlink_to("/usr")
    shutil.copytree("/etc", root / "etc", symlinks=True)
    (root / "etc/marker").touch()
    return root


def enter(root: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script inside `root`."""
    command = [FOLDER / "enter.sh", root, "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_exit_code_comes_back(root):
    """The command's exit code is that of enter.sh."""
    assert enter(root, "exit 7").returncode == 7


def test_inside_the_root_is_another_etc(root):
    """Inside, /etc is the root's, with this machine's names and certificates."""
    assert enter(root, "test -e /etc/marker && cat /etc/hosts").stdout == Path("/etc/hosts").read_text()
    assert not Path("/etc/marker").exists()


def test_root_is_read_only(root):
    """Nothing that runs inside can change the root."""
    result = enter(root, "touch /etc/broken")
    assert result.returncode != 0
    assert "Read-only file system" in result.stderr


def test_settings_of_debian_are_not_read(root):
    """Bazel gets this repository's settings alone: Debian's name an option that every call would warn of."""
    rc = root / "etc/bazel/bazelrc"
    rc.parent.mkdir(exist_ok=True)
    rc.write_text("build --host_javabase=@local_jdk//:jdk\n")
    assert enter(root, "cat /etc/bazel/bazelrc").stdout == ""
    assert rc.read_text() != ""


def test_the_rest_is_the_machine(root, tmp_path):
    """The working directory, temporary files and processes are those of the machine."""
    assert enter(root, f"pwd; echo written >{tmp_path}/file; echo $PPID").stdout.split() == [
        str(Path.cwd()),
        str(os.getpid()),
    ]
    assert (tmp_path / "file").read_text() == "written\n"


def test_signal_reaches_the_command(root):
    """TERM sent to enter.sh is the command's own, since it is the same process."""
    command = [
        FOLDER / "enter.sh",
        root,
        "sh",
        "-c",
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 9


def wait_for(path: Path) -> None:
    """Wait until a program has made `path`."""
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
