import json
import os
import shutil
import subprocess

import pytest

from tests.programs import running_server

GRPCURL = os.environ.get("GRPCURL") or shutil.which("grpcurl")
pytestmark = pytest.mark.skipif(
    GRPCURL is None,
    reason="grpcurl is neither in $GRPCURL nor on PATH; with Go it is had by "
    "`GOBIN=... go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4`",
)


@pytest.fixture(scope="module")
def grpcurl(tmp_path_factory):
    """Run the user service; return what runs grpcurl, which has no .proto file, against it."""

    def run(*command, data=None) -> subprocess.CompletedProcess:
        options = ["-plaintext", "-format-error", *(["-d", json.dumps(data)] if data else [])]
        return subprocess.run(
            [GRPCURL, *options, server.target, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    with running_server(tmp_path_factory.mktemp("grpcurl") / "users.db") as server:
        yield run


def succeed(ended) -> str:
    """Return what a command printed that must succeed."""
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_list(grpcurl):
    """Grpcurl lists the services, and the methods of one."""
    assert "user.UserService" in succeed(grpcurl("list")).splitlines()
    methods = succeed(grpcurl("list", "user.UserService")).split()
    assert methods == [f"user.UserService.{name}" for name in ("CreateUser", "GetUser", "ListUsers")]


def test_describe(grpcurl):
    """Grpcurl shows methods and messages as the .proto file has them, options included."""
    assert "rpc ListUsers ( .user.ListUsersRequest ) returns ( stream .user.User ) {" in succeed(
        grpcurl("describe", "user.UserService")
    )
    assert "option idempotency_level = NO_SIDE_EFFECTS;" in succeed(
        grpcurl("describe", "user.UserService.GetUser")
    )
    assert "string email = 2;" in succeed(grpcurl("describe", "user.CreateUserRequest"))


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_itself(grpcurl, version):
    """Both versions of reflection are listed, and described with their messages."""
    service = f"grpc.reflection.{version}.ServerReflection"
    assert service in succeed(grpcurl("list")).splitlines()
    assert succeed(grpcurl("list", service)).split() == [f"{service}.ServerReflectionInfo"]
    assert f"{service} is a service:" in succeed(grpcurl("describe", service))
    described = succeed(grpcurl("describe", f"grpc.reflection.{version}.ServerReflectionRequest"))
    assert "string file_containing_symbol = 4;" in described


def test_unknown_symbol(grpcurl):
    """What does not exist is said to be not found."""
    ended = grpcurl("describe", "no.such.Thing")
    assert ended.returncode != 0
    assert "Symbol not found: no.such.Thing" in ended.stderr


def test_calls(grpcurl):
    """A user that grpcurl creates is one that it gets, and one of those that it lists."""
    fields = {"name": "Ada", "email": "ada@example.com"}
    user = json.loads(succeed(grpcurl("user.UserService/CreateUser", data=fields)))
    assert user == fields | {"id": user["id"]}
    assert json.loads(succeed(grpcurl("user.UserService/GetUser", data={"id": user["id"]}))) == user
    assert json.loads(succeed(grpcurl("user.UserService/ListUsers"))) == user


def test_health(grpcurl):
    """Grpcurl can ask for the health of the service."""
    checked = grpcurl("grpc.health.v1.Health/Check", data={"service": "user.UserService"})
    assert json.loads(succeed(checked)) == {"status": "SERVING"}


def test_error(grpcurl):
    """Grpcurl decodes the details of an error; they name each field that is wrong."""
    ended = grpcurl("user.UserService/CreateUser", data={"email": "ada"})
    assert ended.returncode != 0
    error = json.loads(ended.stderr)
    assert error["code"] == 3  # INVALID_ARGUMENT
    [details] = error["details"]
    assert details["@type"].endswith("/google.rpc.BadRequest")
    assert [violation["field"] for violation in details["field_violations"]] == ["name", "email"]
