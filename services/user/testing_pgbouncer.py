"""A real PgBouncer for tests: of this machine's package, before a PostgreSQL that a test runs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from services.user.testing_postgresql import AS_NOBODY, PostgreSQL
from tools.ports import held_port

_DEFAULTS = {
    "pool_mode": "transaction",
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "trust",
    "auth_file": "users",
    "admin_users": "postgres",
    # Its log is read from a pipe up to where it listens, and what it says later is to fit in there.
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
            [*AS_NOBODY, _program(), "ini"], cwd=self._folder, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr
        for line in self._process.stderr:
            if "process up" in line:
                return
        raise RuntimeError(f"PgBouncer ended: exit code {self._process.wait()}")

    def stop(self) -> None:
        """End it, which cuts all connections."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def running_pgbouncer(server: PostgreSQL, **settings: object) -> Iterator[PgBouncer]:
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
