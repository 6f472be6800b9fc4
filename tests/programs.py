"""The service's programs as processes of their own, as Bazel built them."""

import os
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

# Paths in the runfiles, where tests start.
SERVER = Path("services/user/server").absolute()
CLIENT = Path("services/user/client").absolute()

PATIENCE = 60
"""Seconds that a program may take for what it does in one."""


class Server:
    """A server process that has said where it listens."""

    def __init__(self, database: Path | str, **variables: str) -> None:
        env = environment(database, **variables)
        self._process = subprocess.Popen(
            [SERVER], env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        # Read all the time, or the server would stop when the pipe is full.
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.first_line = self._lines.get(timeout=PATIENCE)
        # A database that is not there yet, and the keys of tokens.
        while "[warning" in self.first_line or "keys of tokens" in self.first_line:
            self.first_line = self._lines.get(timeout=PATIENCE)
        if "serving" not in self.first_line:
            self.kill()
            raise RuntimeError(self.first_line + self.wait()[1])
        self.target = f"127.0.0.1:{self.port('grpc_port')}"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self._lines.put(line)

    def port(self, name: str) -> int:
        """Return the port that the first log line gives for `name`."""
        match = re.search(rf"\b{name}=(\d+)", self.first_line)
        assert match, self.first_line
        return int(match[1])

    def wait_for_line(self, event: str) -> None:
        """Wait for the next line of the log that has `event` in it."""
        while event not in self._lines.get(timeout=PATIENCE):
            pass

    def channel(self) -> grpc.Channel:
        """Return a plain channel to the server."""
        return grpc.insecure_channel(self.target)

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process."""
        self._process.send_signal(signum)

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the rest of the log."""
        code = self._process.wait(PATIENCE)
        self._reader.join()
        return code, "".join(self._lines.get() for _ in range(self._lines.qsize()))

    def kill(self) -> None:
        """End the process as a power failure would, if it still runs."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()


@contextmanager
def running_server(database: Path | str, **variables: str) -> Iterator[Server]:
    """Run a server over `database`; stop it, if the test has not, when the block ends."""
    server = Server(database, **variables)
    try:
        yield server
    finally:
        if server._process.poll() is None:  # noqa: SLF001
            server.kill()


def environment(database: Path | str, **variables: str) -> dict[str, str]:
    """Return an environment in which the server takes free ports; `database` is a SQLite file or a URL."""
    url = database if "://" in str(database) else f"sqlite:///{database}"
    ours = {"DATABASE_URL": str(url), "GRPC_PORT": "0", "METRICS_PORT": "0", "DRAIN_DELAY": "0s"}
    return os.environ | ours | variables


def migrate(url: str) -> None:
    """Make the service's tables in a database."""
    subprocess.run([SERVER, "migrate"], env=environment(url), check=True, capture_output=True)


def client(server: Server, *arguments: str | bytes) -> subprocess.CompletedProcess[str]:
    """Run the client command against `server`."""
    command = [CLIENT, "--target", server.target, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
