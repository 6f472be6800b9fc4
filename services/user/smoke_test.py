"""`server smoke`: what it calls, and what it says of a service that does not work."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from user import user_service_pb2 as pb
from user import user_service_pb2_grpc as pb_grpc

import grpc_common
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.loopback import configure
from services.user import server
from services.user.config import SmokeConfig, UserServiceConfig
from services.user.smoke import smoke


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a server of its own database."""
    ours = {"DATABASE_URL": f"sqlite:///{folder}/users.db", "GRPC_PORT": "0", "METRICS_ENABLED": "false"}
    return os.environ | ours | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables


@contextmanager
def running(folder: Path, **variables: str) -> Iterator[str]:
    """Run the server; yield its port."""
    command = [sys.executable, server.__file__]
    variables = environment(folder, **variables)
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            while not (port := re.search(r"grpc_port=(\d+)", line := process.stderr.readline())):
                assert line
            yield port[1]
        finally:
            process.kill()


def run(folder: Path, **variables: str) -> tuple[int, str, str]:
    """Run `server smoke`; return exit code, stdout and stderr."""
    command = [sys.executable, server.__file__, "smoke"]
    result = subprocess.run(
        command, env=environment(folder, **variables), capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


def test_a_server_that_works(tmp_path: Path) -> None:
    """It is healthy and looks a user up that nobody is; no user is there afterwards."""
    with running(tmp_path) as port:
        code, output, log = run(tmp_path, SMOKE_TARGET=f"localhost:{port}")
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            users = list(pb_grpc.UserServiceStub(channel).ListUsers(pb.ListUsersRequest()))
    assert (code, log, users) == (0, "", [])
    said = rf"localhost:{port}: user.UserService is SERVING, GetUser answered NOT_FOUND, in \d+\.\d+ s\n"
    assert re.fullmatch(said, output)


def test_a_server_with_mutual_tls(tmp_path: Path) -> None:
    """It is called with the certificate of a client, and not by whoever may not call it."""
    authority = trustme.CA()
    certificates = {
        name: CertificateDirectory(tmp_path / name, authority, *identities).path
        for name, identities in {"server": (), "client": ("client",), "other": ("other",)}.items()
    }
    config = tmp_path / "config.yaml"
    config.write_text("server: {allowed_callers: {'*': [], /user.UserService/GetUser: [client]}}")
    variables = {
        "CONFIG_FILE": str(config),
        "TLS_DIRECTORY": str(certificates["server"]),
        "TLS_REQUIRE_CLIENT_CERTIFICATE": "true",
    }
    with running(tmp_path, **variables) as port:

        def call(name: str) -> tuple[int, str]:
            directory = str(certificates[name])
            code, _, log = run(tmp_path, SMOKE_TARGET=f"localhost:{port}", SMOKE_TLS_DIRECTORY=directory)
            return code, log

        assert call("client") == (0, "")
        code, log = call("other")
    assert code == 1
    assert log.startswith(f"Error: localhost:{port}: GetUser failed: PERMISSION_DENIED: ")


def test_nobody_is_there(tmp_path: Path) -> None:
    """It is one line after smoke.timeout, and so is a mistake in the settings."""
    code, output, log = run(tmp_path, SMOKE_TARGET="localhost:1", SMOKE_TIMEOUT="300ms")
    assert (code, output) == (1, "")
    said = r"Error: localhost:1: the health check failed: (UNAVAILABLE|DEADLINE_EXCEEDED): .*\n"
    assert re.fullmatch(said, log)
    code, _, log = run(tmp_path, SMOKE_TARGET="http://localhost:1")
    assert (code, log.count("\n")) == (1, 1)
    code, _, log = run(tmp_path, SMOKE_TLS_DIRECTORY=f"{tmp_path}/none")
    assert (code, log.count("\n")) == (1, 1)
    assert f"{tmp_path}/none" in log


class Broken(pb_grpc.UserServiceServicer):
    """A version that starts and fails on its first call."""

    async def GetUser(self, _request: object, _context: object) -> object:  # noqa: N802 (the contract's name)
        raise RuntimeError("a mistake\nError: of two lines")


async def test_a_version_that_fails_on_its_first_call() -> None:
    """It is ready for Kubernetes and of no use for callers."""
    served = grpc_common.Server(configure(grpc_common.ServerConfig))
    served.add(Broken(), pb_grpc.add_UserServiceServicer_to_server)
    async with served.serving() as port:
        target = f"localhost:{port}"
        said = rf"^{target}: GetUser failed: (INTERNAL|UNKNOWN): [^\n]*$"
        with pytest.raises(grpc_common.StartError, match=said):
            await smoke(UserServiceConfig(smoke=SmokeConfig(target=target)))


async def test_a_server_that_waits_for_what_it_depends_on() -> None:
    """It says itself that it does not serve, and gets time to."""

    async def ping() -> None:
        raise ConnectionError("no database")

    served = grpc_common.Server(configure(grpc_common.ServerConfig))
    served.add(Broken(), pb_grpc.add_UserServiceServicer_to_server)
    served.depend_on("database", ping)
    async with served.serving() as port:
        target = f"localhost:{port}"
        with pytest.raises(grpc_common.StartError, match=f"{target} was not ready within 0.5 s"):
            await smoke(UserServiceConfig(smoke=SmokeConfig(target=target, timeout=0.5)))


async def test_a_server_of_something_else() -> None:
    """Another service answers at the address, which knows nothing of users."""
    served = grpc_common.Server(configure(grpc_common.ServerConfig))
    async with served.serving() as port:
        target = f"localhost:{port}"
        with pytest.raises(grpc_common.StartError, match=f"{target}: the health check failed: NOT_FOUND"):
            await smoke(UserServiceConfig(smoke=SmokeConfig(target=target)))
