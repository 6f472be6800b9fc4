"""A real PgBouncer for tests: of this machine's package, before a PostgreSQL that a test runs."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import pytest

from tools.ports import held_port
from tools.wrappers import AS_NOBODY, DIES_WITH_US

_DEFAULTS = {
    "pool_mode": "transaction",
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "trust",
    "auth_file": "users",
    "admin_users": "postgres",
    # What nobody reads.
    "log_connections": 0,
    "log_disconnections": 0,
    "log_stats": 0,
}


class PgBouncer:
    """A PgBouncer on a free port of 127.0.0.1.

    Args:
        folder: an empty one, for its files.
        port: that it listens on.
        server: the URL of the PostgreSQL behind it, without password.
        settings: those of pgbouncer.ini that a test wants otherwise than `pool_mode = transaction`
            and PgBouncer's own defaults.

    """

    def __init__(self, folder: Path, port: int, server: str, settings: dict[str, object]) -> None:
        self._folder = folder
        self._write_files(port, server, settings)
        self.url = server.replace(str(urlsplit(server).port), str(port))
        self.admin_url = f"postgresql://postgres@127.0.0.1:{port}/pgbouncer"
        """The database that answers SHOW POOLS and its like."""
        self.start()

    def _write_files(self, port: int, server: str, settings: dict[str, object]) -> None:
        values = _DEFAULTS | {"listen_port": port} | settings
        lines = [f"{key} = {value}" for key, value in values.items()]
        behind = urlsplit(server)
        databases = f"* = host={behind.hostname} port={behind.port}"
        (self._folder / "ini").write_text("\n".join(["[databases]", databases, "[pgbouncer]", *lines, ""]))
        (self._folder / "users").write_text('"postgres" ""\n')

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            [*AS_NOBODY, *DIES_WITH_US, _program(), "ini"],
            cwd=self._folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr
        for line in self._process.stderr:
            if "process up" in line:
                # Read on: it would stand still once the pipe is full of what it says of a lost database.
                self._reader = threading.Thread(target=self._process.stderr.read)
                self._reader.start()
                return
        raise RuntimeError(f"PgBouncer ended: exit code {self._process.wait()}")

    def stop(self) -> None:
        """End it, which cuts all connections."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr
        self._process.stderr.close()

    def restart(self) -> None:
        """End it, and start it again."""
        self.stop()
        self.start()


class Database(Protocol):
    """What can be behind a PgBouncer: a PostgreSQL, or an address that leads to one."""

    @property
    def url(self) -> str:
        """Without a password."""


@contextmanager
def running_pgbouncer(server: Database, **settings: object) -> Iterator[PgBouncer]:
    """Run PgBouncer before `server` for the block; skip the test if the machine has none."""
    _program()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as folder, held_port() as port:
        bouncer = PgBouncer(Path(folder), port, server.url, settings)
        try:
            yield bouncer
        finally:
            bouncer.stop()


def _program() -> str:
    found = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if not found:
        pytest.skip("needs PgBouncer (Debian: pgbouncer)")
    return found
