"""A real PostgreSQL for tests: of this machine's package, in a temporary folder, gone afterwards."""

import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, override

import pytest

from tools.ports import held_port
from tools.wrappers import AS_NOBODY

PATIENCE = 60
"""Seconds that a program of PostgreSQL may take."""

# What is left to do when the test process is gone, however it went: its end of the pipe closes.
_WATCHDOG = """
cat >/dev/null
{pg_ctl} stop --silent --mode=immediate --pgdata={data} >/dev/null 2>&1
rm -rf {folder}
"""

_SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
# PostgreSQL's own default; here because nothing would be proven without it.
fsync = on
"""


class PostgreSQL:
    """A PostgreSQL server on a free port of 127.0.0.1; `url` is that of its database `users`.

    Programs that fail raise subprocess.CalledProcessError, whose message is on stderr.
    """

    def __init__(self, binaries: Path, folder: Path, port: int) -> None:
        self.binaries = binaries
        self._data = folder / "data"
        self._pid_file = self._data / "postmaster.pid"
        self._log = folder / "log"
        self._port = port
        self.url = f"postgresql://postgres@127.0.0.1:{port}/users"
        self._make_data()
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS.format(port=port))
        self.start()

    def _make_data(self) -> None:
        self._run(
            "initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale"
        )

    @property
    def version(self) -> str:
        """What the server says of its version, such as "postgres (PostgreSQL) 18.6"."""
        return self._run("postgres", "--version").strip()

    def start(self) -> None:
        """Start it on the same port as ever, and wait until it answers."""
        self._control("start", f"--log={self._log}")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop it, and wait for its end; `mode` is pg_ctl's."""
        self._control("stop", f"--mode={mode}")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it for the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def restart(self) -> None:
        """Stop it, which cuts all connections, and start it again."""
        self._control("restart", "--mode=fast", f"--log={self._log}")

    def kill(self) -> None:
        """End all its processes at once, as a power failure would; `start` then recovers."""
        for end in [_killed(pid) for pid in self._processes()]:
            if end is not None:
                select.select([end], [], [], PATIENCE)
                os.close(end)
        # Where nobody reaps the dead, `start` would take them for running.
        self._pid_file.unlink()

    def _processes(self) -> list[int]:
        """Return its processes, the one that starts all others first."""
        postmaster = self._pid_file.read_text().splitlines()[0]
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        return [int(pid) for pid in (postmaster, *children)]

    def require_password(self, role: str) -> None:
        """Let a role in with its password alone, from now on."""
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        self._control("reload")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have it neither answer nor refuse anything for the block, as on a machine that is overloaded."""
        pids = self._processes()
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)

    def new_database(self) -> None:
        """Replace the database `users` by an empty one, whoever is connected."""
        self.drop_database()
        self._sql("createdb", "users")

    def drop_database(self) -> None:
        """Remove the database `users`, whoever is connected."""
        self._sql("dropdb", "--if-exists", "--force", "users")

    def _control(self, command: str, *options: str) -> None:
        self._run("pg_ctl", command, "--silent", "--wait", f"--timeout={PATIENCE}", *options)

    def _sql(self, program: str, *arguments: str) -> None:
        self._run(program, "--host=127.0.0.1", f"--port={self._port}", "--username=postgres", *arguments)

    def _run(self, program: str, *arguments: str) -> str:
        command = [*AS_NOBODY, str(self.binaries / program), *arguments]
        environment = os.environ | {
            "PGDATA": str(self._data),
            "LC_ALL": "C",
            "PGOPTIONS": "--client-min-messages=warning",
        }
        # The server inherits stdout, which therefore can't be a pipe that is read to its end.
        with tempfile.TemporaryFile("w+") as output:
            subprocess.run(command, env=environment, stdout=output, check=True)
            output.seek(0)
            return output.read()


class Standby(PostgreSQL):
    """A server that streams what `primary` writes, and takes no writes of its own until it is promoted."""

    def __init__(self, primary: PostgreSQL, folder: Path, port: int) -> None:
        self._primary = primary
        super().__init__(primary.binaries, folder, port)

    @override
    def _make_data(self) -> None:
        ends = [f"--dbname={self._primary.url}", f"--pgdata={self._data}"]
        self._run("pg_basebackup", *ends, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")

    def promote(self) -> None:
        """Have it take writes, and wait until it does."""
        self._control("promote")


@contextmanager
def running_postgresql(disk: Path | None = None) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL server for the block, its files on `disk`; skip the test if the machine has none."""
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir=disk))
    with held_port() as port, _removed_whatever_happens(binaries, folder):
        server = PostgreSQL(binaries, folder, port)
        server.new_database()
        yield server


@contextmanager
def running_standby(primary: PostgreSQL, disk: Path | None = None) -> Iterator[Standby]:
    """Run a standby that follows `primary` for the block, its files on `disk`."""
    folder = Path(tempfile.mkdtemp(prefix="standby-", dir=disk))
    with held_port() as port, _removed_whatever_happens(primary.binaries, folder):
        yield Standby(primary, folder, port)


@contextmanager
def _removed_whatever_happens(binaries: Path, folder: Path) -> Iterator[None]:
    pg_ctl = shlex.join([*AS_NOBODY, str(binaries / "pg_ctl")])
    script = _WATCHDOG.format(pg_ctl=pg_ctl, data=folder / "data", folder=folder)
    # A session of its own: what ends the test's processes is not to end this one.
    command = ["/bin/sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield


def _binaries() -> Path:
    """Return the folder of PostgreSQL's programs; Debian has it beside the PATH, a folder a version."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not installed:
        pytest.skip("needs PostgreSQL's server (Debian: postgresql)")
    return max(installed, key=lambda folder: int(folder.parent.name))


def _signal(pids: Iterable[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # a backend may end by itself
            os.kill(pid, signum)


def _killed(pid: int) -> int | None:
    """Kill a process, and return a descriptor that is readable once it is dead; None if it is already."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    with suppress(ProcessLookupError):  # a backend may end by itself
        signal.pidfd_send_signal(end, signal.SIGKILL)
    return end
