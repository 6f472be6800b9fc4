"""The image for the other architecture, in a container on this machine: QEMU emulates its processor."""

import time
from pathlib import Path

import grpc
import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tests.image.platforms import EMULATOR, FOREIGN, emulator
from tests.image.podman import serving
from tools.image.image_files import Image

LAYOUT = Path(f"services/user/image_{FOREIGN}").absolute()

pytestmark = pytest.mark.skipif(
    not emulator(), reason=f"there is no emulator: this machine lacks {EMULATOR} (Debian package qemu-user)"
)


@pytest.fixture
def emulated(podman, flags):
    """Return podman's arguments that run the image's own program, with the rights of the Deployment."""
    image = podman("pull", f"oci:{LAYOUT}").splitlines()[-1]
    # Half a core is for processors that nobody has to imitate.
    unhurried = [flag for flag in flags if not flag.startswith("--cpus=")]
    entrypoint = ["/emulator", *Image(LAYOUT).config()["config"]["Entrypoint"]]
    words = ",".join(f'"{word}"' for word in entrypoint)
    return [*unhurried, f"--volume={emulator()}:/emulator:ro", f"--entrypoint=[{words}]", image]


def test_server_answers(podman, emulated, volume):
    """It starts, knows no user, keeps one, and ends with 0."""
    *flags, image = emulated
    with serving(podman, "foreign", *flags, volume, image) as server, server.channel() as channel:
        print(f"linux/{FOREIGN}: started to serving in {server.seconds_to_serving:.2f} s")
        stub = UserServiceStub(channel)
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as failure:
            stub.GetUser(pb.GetUserRequest(id="01890a5d-ac96-774b-bcce-b302099a8057"))
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND
        print(f"linux/{FOREIGN}: GetUser: {failure.value.details()} ({time.monotonic() - started:.2f} s)")
        created = stub.CreateUser(pb.CreateUserRequest(name="Ada", email="ada@example.com"))
        assert stub.GetUser(pb.GetUserRequest(id=created.id)) == created
        assert server.probe("readiness") == "status: SERVING\n"
        server.terminate()
        code, log = server.wait()
    assert code == 0, log
