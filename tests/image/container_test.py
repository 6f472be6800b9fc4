"""The images in real containers, with the limits and rights that the Deployment gives them."""

import re
from pathlib import Path

import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from k8s.checks.rendered import load
from tests.image.podman import LOAD, LOAD_CLIENT, PATIENCE, serving

IMAGE, CLIENT = "localhost/user-service:latest", "localhost/user-service-client:latest"


@pytest.fixture(scope="module", autouse=True)
def _images(podman):
    """Bring both images to podman, as a developer does."""
    podman.command(LOAD)
    podman.command(LOAD_CLIENT)


def fails(podman, *arguments) -> tuple[int, str]:
    """Run a container that ends by itself; return its exit code and what it said."""
    _, log = (process := podman.start("run", "--rm", *arguments)).communicate(timeout=PATIENCE)
    return process.returncode, log


def test_serves_and_drains(podman, flags, volume):
    """It is healthy and answers from outside; SIGTERM lets a call in flight finish, and ends it with 0."""
    with serving(podman, "serves", *flags, volume, IMAGE) as server, server.channel() as channel:
        print(f"started to serving in {server.seconds_to_serving:.2f} s")
        for service in ("", "liveness", "readiness"):
            assert server.probe(service) == "status: SERVING\n"
        stub = UserServiceStub(channel)
        # 300 kB: more than the flow-control windows hold, so that the stream is still in flight.
        users = [
            stub.CreateUser(pb.CreateUserRequest(name="字" * 200, email=f"user{number}@example.com"))
            for number in range(500)
        ]
        assert stub.GetUser(pb.GetUserRequest(id=users[0].id)) == users[0]
        stream = stub.ListUsers(pb.ListUsersRequest(page_size=1000))
        received = [next(stream)]
        server.terminate()
        received += stream
        assert received == users
        code, log = server.wait()
    assert code == 0, log
    assert '"event": "draining"' in log


def test_has_the_rights_and_limits_of_the_deployment(podman, deployment, flags, volume):
    """The process has the user's number, no capability, no way to more, and the memory that it may use."""
    with serving(podman, "limits", *flags, volume, IMAGE) as server:
        process = Path("/proc", str(server.pid))
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        assert status["Uid"].split() == status["Gid"].split() == [str(deployment.user())] * 4
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2", "filtered, as with seccompProfile RuntimeDefault"
        mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
        assert [mount[5].split(",")[0] for mount in mounts if mount[4] == "/"] == ["ro"]
        assert memory_limit(process) == deployment.memory()
        assert cpu_limit(process) is None, "it would stand still with CPUs idle"


def cgroup(process: Path, controller: str) -> Path:
    """Return the folder of a process' cgroup: one for all controllers, or one for each."""
    groups = dict(line.split(":", 2)[1:] for line in (process / "cgroup").read_text().splitlines())
    if controller in groups:
        return Path("/sys/fs/cgroup", controller) / groups[controller].removeprefix("/")
    return Path("/sys/fs/cgroup") / groups[""].removeprefix("/")


def memory_limit(process: Path) -> int:
    """Return how many bytes a process may have."""
    folder = cgroup(process, "memory")
    file = folder / "memory.max"
    return int((file if file.exists() else folder / "memory.limit_in_bytes").read_text())


def cpu_limit(process: Path) -> float | None:
    """Return how many cores a process may have, None for all."""
    folder = cgroup(process, "cpu")
    if (file := folder / "cpu.max").exists():
        quota, period = file.read_text().split()
    else:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    return None if quota in {"max", "-1"} else int(quota) / int(period)


def test_users_survive_their_container(podman, flags, volume):
    """What is in the volume is there for the next container; SIGKILL loses nothing of it either."""
    with serving(podman, "first", *flags, volume, IMAGE) as server, server.channel() as channel:
        user = UserServiceStub(channel).CreateUser(pb.CreateUserRequest(name="Ada", email="ada@example.com"))
        server.kill()
    with serving(podman, "second", *flags, volume, IMAGE) as server, server.channel() as channel:
        assert UserServiceStub(channel).GetUser(pb.GetUserRequest(id=user.id)) == user


def arguments_of_the_job() -> list[str]:
    """Return what production's migration Job gives to the server."""
    [job] = [each for each in load("prod") if each["metadata"]["name"] == "user-service-migrate"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    return container["args"]


def test_migrates_as_the_job_does(podman, flags, volume):
    """It makes the schema, and finds it up to date the next time."""
    migrate = ["run", "--rm", *flags, volume, IMAGE, *arguments_of_the_job()]
    output = podman(*migrate)
    assert re.fullmatch(r"/data/users\.db: schema none -> (\w+)", output)
    version = output.rpartition(" ")[2]
    output = podman(*migrate)
    assert output == f"/data/users.db: schema {version} -> {version}"


def test_missing_volume_is_named(podman, flags):
    """Without a volume the root file system is read-only, and the error names the file that it can't make."""
    code, log = fails(podman, *flags, IMAGE)
    assert code == 1
    assert "Traceback" not in log
    assert "/data" in log.splitlines()[-1], log


def test_no_place_for_the_database_is_said(podman, flags):
    """Without DATABASE_URL the error says which variable to set."""
    code, log = fails(podman, *flags, "--env=DATABASE_URL=", IMAGE)
    assert code == 1
    assert "Traceback" not in log
    assert "set DATABASE_URL" in log


@pytest.fixture
def config(flags):
    """Return the file that is mounted as the configuration."""
    (mount,) = (flag for flag in flags if flag.endswith(":/etc/user-service:ro"))
    return Path(mount.removeprefix("--volume=").partition(":")[0], "config.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("server:\n  prot: 1\n", r"server\.prot"), ("server: [\n", r"/etc/user-service/config\.yaml")],
    ids=["unknown key", "no YAML"],
)
def test_bad_configuration_is_explained(podman, flags, config, text, message):
    """The error names the key, or the file and the line, and the exit code is not 0."""
    config.write_text(text)
    code, log = fails(podman, *flags, IMAGE)
    assert code != 0
    assert "Traceback" not in log
    assert re.search(message, log), log


def test_missing_configuration_is_named(podman, flags, config):
    """CONFIG_FILE names a file that must be there."""
    config.unlink()
    code, log = fails(podman, *flags, IMAGE)
    assert code != 0
    assert "Traceback" not in log
    assert "/etc/user-service/config.yaml" in log


def test_client_image_calls_the_server_image(podman, flags, volume):
    """The command line in its own container creates users on the server in another."""
    with serving(podman, "server", *flags, volume, IMAGE) as server:
        client = ["run", "--rm", "--read-only", "--cap-drop=ALL", CLIENT, f"--target={server.target}"]
        created = podman(*client, "create", "--name=Ada", "--email=ada@example.com")
        assert "ada@example.com" in created
        assert podman(*client, "list") == created


def test_bytecode_is_used(podman, flags):
    """No source is compiled at start, since nobody could keep the result."""
    python = ["--entrypoint=/opt/python/bin/python3", IMAGE, "-I", "-B", "-v", "/opt/application", "--help"]
    process = podman.start("run", "--rm", *flags, *python)
    _, imports = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "/opt/application/services/user/__pycache__/server.cpython-314.pyc matches" in imports
    compiled_now = re.findall(r"^# code object from '?(/opt/[^']*\.py)'?$", imports, re.MULTILINE)
    assert set(compiled_now) <= {"/opt/application/__main__.py"}


def test_there_is_no_shell(podman):
    """Who gets into a container finds nothing to run."""
    for program in ("/bin/sh", "sh", "bash", "apt", "pip"):
        code, log = fails(podman, f"--entrypoint={program}", IMAGE)
        assert code == 127, log
