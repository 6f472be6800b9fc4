"""The server's command over PostgreSQL: migration, refusals, readiness."""

import asyncio
import os
import re
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from services.user import server
from services.user.storage import migrate_storage, schema
from services.user.testing_releases import Release

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def environment(url: str) -> dict[str, str]:
    """Return the environment of a server over the database at `url`."""
    ours = {"DATABASE_URL": url, "GRPC_PORT": "0", "METRICS_ENABLED": "false", "DRAIN_DELAY": "0s"}
    return os.environ | ours | {"PYTHONPATH": os.pathsep.join(sys.path)}


def run(url: str, *arguments: str) -> tuple[int, str, str]:
    """Run the command to its end; return exit code, stdout and stderr."""
    result = subprocess.run(
        [sys.executable, server.__file__, *arguments],
        env=environment(url),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


@contextmanager
def running(url: str):
    """Run a server in the background; yield a channel to it."""
    command = [sys.executable, server.__file__]
    with subprocess.Popen(command, env=environment(url), stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (port := re.search(r"grpc_port=(\d+)", line := process.stderr.readline())):
                assert line
            yield grpc.aio.insecure_channel(f"127.0.0.1:{port[1]}")
        finally:
            process.kill()


async def health(channel, name: str):
    """Return what the server says of `name`."""
    return (
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    ).status


async def until_ready(channel) -> None:
    """Wait until the server is ready."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
    async with asyncio.timeout(30):
        async for response in watch:
            if response.status == SERVING:
                break


def test_migrate_says_from_where_to_where(postgresql_database):
    """`server migrate` makes the schema, a second time it changes nothing, and both say so."""
    name = postgresql_database.name
    code, output, log = run(postgresql_database.url, "migrate")
    assert (code, output) == (0, f"{name}: schema none -> {schema.VERSION}\n")
    steps = re.findall(r"migrated +migration=(\d+) seconds=\d+\.\d+\n", log)
    assert steps[0] == "0001"
    assert steps[-1] == schema.VERSION
    again = f"{name}: schema {schema.VERSION} -> {schema.VERSION}\n"
    assert run(postgresql_database.url, "migrate") == (0, again, "")


@pytest.mark.parametrize("arguments", [["migrate", "--config"], ["--config"]])
def test_migrate_reads_the_configuration(postgresql_database, tmp_path, arguments):
    """The file is taken from before and from after the command's name."""
    file = tmp_path / "config.yaml"
    file.write_text(f"database: {{url: '{postgresql_database.url}'}}")
    words = [*arguments, str(file)] + ([] if "migrate" in arguments else ["migrate"])
    variables = environment("")
    del variables["DATABASE_URL"]
    result = subprocess.run(
        [sys.executable, server.__file__, *words], env=variables, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(postgresql_database.name)


def test_three_migrate_commands_at_once(postgresql_database):
    """Three jobs that start together all succeed, and one of them has done it."""
    command = [sys.executable, server.__file__, "migrate"]
    variables = environment(postgresql_database.url)
    jobs = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [job.communicate(timeout=30)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert sum("none -> " in output for output in outputs) == 1


async def test_server_before_its_migration(postgresql_database, tmp_path):
    """A server waits for `server migrate`, not ready, which it says, and works once that has run."""
    waits = (
        f"{postgresql_database.name}: the database has no schema yet, "
        f"this program needs {schema.VERSION}: run `server migrate` first"
    )
    async with Release(tmp_path / "now").pod(postgresql_database.url) as pod:
        await pod.until_logged(f"not ready until it can +reason='{re.escape(waits)}'")
        await pod.until_ready(ready=False)
        async with grpc.aio.insecure_channel(pod.address) as channel:
            assert await health(channel, "liveness") == SERVING
            await migrate_storage(postgresql_database)
            await pod.until_ready()
            request = pb.CreateUserRequest(name="Ada", email="ada@example.com")
            await UserServiceStub(channel).CreateUser(request)


async def test_program_that_the_database_has_no_room_for(database, tmp_path):
    """After a contraction an old server that starts ends at once, and says why; so does its Job."""
    now, next_release = Release(tmp_path / "now"), Release(tmp_path / "next", ADDS, TAKES_AWAY)
    assert (await next_release.run(database.url, "migrate"))[0] == 0
    expected = (
        f"Error: {database.name}: the database has schema 0004, which works with programs of schema 0003 and "
        f"later; this one has {schema.VERSION}: deploy a newer program\n"
    )
    assert await now.run(database.url) == (1, "", expected)
    assert await now.run(database.url, "migrate") == (server.NOT_TO_BE_REPEATED, "", expected)


ADDS = """
def upgrade() -> None:
    op.create_table("others", sa.Column("id", sa.Text(), primary_key=True))
"""
TAKES_AWAY = """
oldest_program = "0003"

def upgrade() -> None:
    op.drop_table("idempotency_keys")
"""


def test_migrate_without_a_database():
    """A job whose database is not there fails with one line, and shows no password."""
    code, output, error = run("postgresql://ada:secret@127.0.0.1:1/users", "migrate")
    assert (code, output) == (1, "")
    assert error.startswith("Error: postgresql://ada:***@127.0.0.1:1/users: ")
    assert error.count("\n") == 1
    assert "secret" not in error


@pytest.mark.parametrize(
    "url",
    [
        "mysql://users",
        "sqlite:///",
        "postgresql+asyncpg://host/users",
        "postgresql://ada:secret@host:port/users",
        "postgresql://ada@host/users?password=secret",
    ],
)
def test_url_of_a_wrong_form(url):
    """A URL that can't be right is a mistake of the configuration, which is not shown."""
    code, output, error = run(url)
    assert (code, output) == (1, "")
    assert error.startswith("Error: DATABASE_URL=***: ")
    assert "secret" not in error


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:CANARY@127.0.0.1:1,localhost:2/users",
        "postgresql://u@127.0.0.1:1/users?sslpassword=CANARY&application_name=x",
        "postgresql://u:CANARY@127.0.0.1:1/users?sslmode=CANARI",
        "postgresql://u:CANARY@a..b/users",
        "postgresql://u:CANARY@127.0.0.1:1/users?port=CANARY",
        "postgresql://u:%00CANARY@127.0.0.1:1/users",
        "postgresql://u:1234/CANARY@127.0.0.1/users",
    ],
)
def test_no_output_shows_a_password(url):
    """No printed configuration, log or error of server and migration has a part of a secret."""
    output = "".join(map(str, run(url, "--print-config") + run(url, "migrate"))) + log_without_database(url)
    assert "CANAR" not in output.replace("CANARI", "")  # an sslmode, which the error names
    assert "Traceback" not in output


def log_without_database(url: str) -> str:
    """Run a server until it ends or has found out that its database is not there; return its log."""
    command = [sys.executable, server.__file__]
    lines = []
    with subprocess.Popen(command, env=environment(url), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            lines.append(line)
            if "dependency failed" in line:
                process.kill()
    return "".join(lines)


async def test_start_before_the_database(postgresql, postgresql_database):
    """Without its database a server starts, lives and is not ready; with it, it is, and works."""
    await migrate_storage(postgresql_database)
    with ExitStack() as stack:
        with postgresql.stopped():
            channel = stack.enter_context(running(postgresql_database.url))
            create = UserServiceStub(channel).CreateUser
            request = pb.CreateUserRequest(name="Ada", email="ada@example.com")
            for name in ("", "readiness", "user.UserService"):
                assert await health(channel, name) == NOT_SERVING
            assert await health(channel, "liveness") == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await create(request)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "the users can't be read or written now"
        await until_ready(channel)
        await create(request)


async def test_server_over_sqlite_is_ready(tmp_path: Path):
    """A server over a file makes it and is ready at once."""
    with running(f"sqlite:///{tmp_path}/users.db") as channel:
        await until_ready(channel)
        await UserServiceStub(channel).CreateUser(pb.CreateUserRequest(name="Ada", email="ada@example.com"))
