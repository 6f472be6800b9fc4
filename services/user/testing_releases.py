"""Releases of the user service for tests: this one, and ones that are still to come, as real programs."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.user.storage import schema

_PACKAGE = Path(__file__).parent

_HEAD = '''"""A migration of a test."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"
'''

EXPAND = """
def upgrade() -> None:
    op.add_column("users", sa.Column("nickname", sa.Text()))
    op.create_table(
        "keys_of_users",
        sa.Column("key", sa.Text(collation="C").with_variant(sa.Text(), "sqlite"), primary_key=True),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid().with_variant(sa.LargeBinary(), "sqlite"), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True).with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
    )
"""
"""A migration that adds. It needs a lock on the table of users, which is in use."""

PATIENCE = 60
"""Seconds that a program may take to do what is asked."""


class Release:
    """A release of the user service, in a folder of its own.

    Args:
        folder: where it is made.
        *scripts: the migrations that it has and this one has not: a function `upgrade`, and what
            the script says of itself.
        replace: words of the storage's source, and what takes their place.

    """

    def __init__(self, folder: Path, *scripts: str, replace: Sequence[tuple[str, str]] = ()) -> None:
        self._folder = folder
        self.version = schema.VERSION
        storage = folder / "services/user/storage"
        shutil.copytree(
            _PACKAGE, storage.parent, ignore=shutil.ignore_patterns("*_test.py", "testing_*", "__pycache__")
        )
        for script in scripts:
            self._add(storage, script)
        for file in ("sqlite.py", "postgresql.py"):
            for old, new in replace:
                text = (storage / file).read_text()
                assert old in text
                (storage / file).write_text(text.replace(old, new))

    def _add(self, storage: Path, script: str) -> None:
        before, self.version = self.version, f"{int(self.version) + 1:04}"
        head = _HEAD.format(revision=self.version, before=before)
        (storage / f"migrations/versions/{self.version}_test.py").write_text(head + script)
        text = (storage / "schema.py").read_text()
        told = f'VERSION = "{before}"'
        assert told in text
        (storage / "schema.py").write_text(text.replace(told, f'VERSION = "{self.version}"'))

    @property
    def command(self) -> list[str]:
        """The release's program, which takes the arguments of `server`."""
        path = os.pathsep.join([str(self._folder), *sys.path])
        return ["env", f"PYTHONPATH={path}", sys.executable, str(self._folder / "services/user/server.py")]

    async def start(self, url: str, *arguments: str, **variables: str) -> asyncio.subprocess.Process:
        """Start the release's command over the database at `url`."""
        ours = {"DATABASE_URL": url, "GRPC_PORT": "0", "METRICS_ENABLED": "false", "DRAIN_DELAY": "0s"}
        return await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            env=os.environ | ours | variables,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, url: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Run the command to its end; return exit code, stdout and stderr."""
        process = await self.start(url, *arguments, **variables)
        async with asyncio.timeout(PATIENCE):
            output, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), error.decode()

    @asynccontextmanager
    async def pod(self, url: str, **variables: str) -> AsyncIterator[Pod]:
        """Run a server for the block."""
        process = await self.start(url, **variables)
        pod = Pod(process)
        try:
            await pod.started()
            yield pod
        finally:
            await pod.end()


class Pod:
    """A server that runs.

    Args:
        process: the server, from its start.

    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.address = ""
        """Where it serves."""
        self.log = ""
        """What it has written to stderr."""
        self._written = asyncio.Condition()
        self._has_ended = False
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr
        async for line in self._process.stderr:
            async with self._written:
                self.log += line.decode()
                self._written.notify_all()
        async with self._written:
            self._has_ended = True
            self._written.notify_all()

    async def until_logged(self, pattern: str) -> re.Match[str]:
        """Wait for what its log is to say."""
        async with asyncio.timeout(PATIENCE), self._written:
            await self._written.wait_for(lambda: self._has_ended or re.search(pattern, self.log))
        found = re.search(pattern, self.log)
        assert found, self.log
        return found

    async def started(self) -> None:
        """Wait until it listens."""
        port = await self.until_logged(r"grpc_port=(\d+)")
        self.address = f"127.0.0.1:{port[1]}"

    async def until_ready(self, *, ready: bool = True) -> None:
        """Wait until it is ready, or is not any more."""
        async with asyncio.timeout(PATIENCE), grpc.aio.insecure_channel(self.address) as channel:
            request = health_pb2.HealthCheckRequest(service="readiness")
            stub: Any = health_pb2_grpc.HealthStub(channel)
            async for response in stub.Watch(request):
                if (response.status == health_pb2.HealthCheckResponse.SERVING) == ready:
                    return

    async def end(self) -> int:
        """Have it drain and end, as Kubernetes does; return its exit code."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        async with asyncio.timeout(PATIENCE):
            code = await self._process.wait()
            await self._reading
        return code
