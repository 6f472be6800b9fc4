import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tests.programs import SERVER, environment, running_server


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return where a server may keep its users."""
    return tmp_path / "users.db"


def create_users(channel: grpc.Channel, count: int) -> list[pb.User]:
    """Create users with the longest names that are allowed."""
    create = UserServiceStub(channel).CreateUser
    return [create(pb.CreateUserRequest(name="字" * 200, email=f"user{n}@example.com")) for n in range(count)]


def test_users_are_still_there_after_a_restart(database):
    """A stopped server, started again, serves the same users."""
    with running_server(database) as server, server.channel() as channel:
        users = create_users(channel, 3)
        server.signal(signal.SIGINT)
        assert server.wait()[0] == 0
    with running_server(database) as server, server.channel() as channel:
        assert list(UserServiceStub(channel).ListUsers(pb.ListUsersRequest())) == users


def test_first_log_line_names_ports_and_database(database):
    """The first line tells where to call, where to scrape and what to back up."""
    with running_server(database) as server:
        assert f"database={database}" in server.first_line
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port('metrics_port')}/metrics") as page:
            assert b"process_cpu_seconds_total" in page.read()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains(database, signum):
    """A stream that began before the signal ends whole, and the exit code is 0."""
    with running_server(database) as server, server.channel() as channel:
        users = create_users(channel, 500)  # 300 kB: more than the flow-control windows hold
        stream = UserServiceStub(channel).ListUsers(pb.ListUsersRequest(page_size=1000))
        received = [next(stream)]
        server.signal(signum)
        server.wait_for_line("draining")
        received += stream
        assert received == users
        code, log = server.wait()
    assert code == 0
    assert "Traceback" not in log


def test_second_signal_ends_at_once(database):
    """Who sends a second signal does not wait for the grace of a call in flight."""
    with running_server(database) as server, server.channel() as channel:
        create_users(channel, 500)
        stream = UserServiceStub(channel).ListUsers(pb.ListUsersRequest(page_size=1000))
        next(stream)
        server.signal(signal.SIGTERM)
        server.wait_for_line("draining")
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == -signal.SIGTERM


def test_health_over_a_plain_channel(database):
    """The health service answers for the server and for user.UserService."""
    with running_server(database) as server, server.channel() as channel:
        for name in ("", "user.UserService"):
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_generic_reflection_client(database):
    """A client that knows no .proto file finds the service, creates a user and lists it."""
    with running_server(database) as server, server.channel() as channel:
        reflected = ProtoReflectionDescriptorDatabase(channel)
        assert set(reflected.get_services()) == {
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "user.UserService",
        }
        service = DescriptorPool(reflected).FindServiceByName("user.UserService")

        def call(method: str, **fields: object):
            descriptor = service.methods_by_name[method]
            kind = channel.unary_stream if descriptor.server_streaming else channel.unary_unary
            return kind(
                f"/{service.full_name}/{method}",
                lambda request: request.SerializeToString(),
                GetMessageClass(descriptor.output_type).FromString,
            )(GetMessageClass(descriptor.input_type)(**fields))

        user = call("CreateUser", name="Ada", email="ada@example.com")
        assert call("GetUser", id=user.id).email == "ada@example.com"
        assert [listed.id for listed in call("ListUsers")] == [user.id]


def refusal(*arguments: str, **variables: str) -> tuple[int, list[str]]:
    """Start a server that can't run; return its exit code and the lines of stderr."""
    database = variables.pop("database", "/tmp/unused.db")  # noqa: S108
    result = subprocess.run(
        [SERVER, *arguments],
        env=environment(database, **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr.splitlines()


@pytest.mark.parametrize("variable", ["GRPC_PORT", "METRICS_PORT"])
def test_occupied_port(database, variable):
    """A port in use is one line that says which variable to set."""
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        code, lines = refusal(database=str(database), **{variable: str(port)})
    assert code == 1
    (line,) = lines
    assert line.startswith(f"Error: port {port} can't be served (Address already in use")
    assert f"set {variable} to another one" in line


@pytest.mark.parametrize("path", ["/proc/users.db", "/nowhere/users.db", "/"])
def test_unusable_database_path(path):
    """A path that can't be written is one line that names it."""
    code, lines = refusal(database=path)
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"Error: {path}: ")


def test_corrupt_database(database):
    """A file that is no database is refused and left as it is."""
    database.write_text("not a database, but precious\n" * 100)
    code, lines = refusal(database=str(database))
    assert (code, lines) == (1, [f"Error: {database}: file is not a database"])
    assert "precious" in database.read_text()


def test_bad_variables():
    """Every variable that is wrong gets a line; nothing is started."""
    code, lines = refusal(GRPC_PORT="http", METRICS_PORT="-1", DATABASE_URL="mysql://x")
    assert code == 1
    assert [line.removeprefix("Error: ").split("=")[0] for line in lines] == [
        "GRPC_PORT",
        "METRICS_PORT",
        "DATABASE_URL",
    ]


def test_unknown_argument():
    """An argument that the server does not know is a mistake in the command."""
    code, lines = refusal("--port", "1")
    assert code == 2
    assert "No such option" in lines[-1]
