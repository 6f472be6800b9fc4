"""Which image goes where, and what is said if a registry refuses it."""

import hashlib
import http
import http.server
import json
import re
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import trustme

from tools.kubernetes.deploy.manifests import Manifests
from tools.kubernetes.deploy.push import push_image

DIGEST = "sha256:" + 64 * "1"
OURS = {"name": "app", "image": f"registry.example.com/app@{DIGEST}"}
SIDECAR = {"name": "proxy", "image": f"sidecars.example.com/proxy@sha256:{64 * '2'}"}

needs_crane = pytest.mark.skipif(not shutil.which("crane"), reason="this machine lacks crane")


def of_pods(**pod: list[dict[str, str]]) -> Manifests:
    """Return a Deployment with these lists of containers."""
    spec = {"template": {"spec": pod}}
    return Manifests([{"kind": "Deployment", "metadata": {"name": "app"}, "spec": spec}])


class Pusher:
    """A program in the place of oci_push."""

    def __init__(self, folder: Path) -> None:
        self.digest = folder / "digest"
        self.digest.write_text(DIGEST + "\n")
        self.program = folder / "push"
        self.is_a(f'echo "$@" >>{folder}/pushed\n')
        self._pushed = folder / "pushed"

    def is_a(self, script: str) -> None:
        """Let it be another program."""
        self.program.write_text(f"#!/bin/sh\n{script}")
        self.program.chmod(0o755)

    def push(self, manifests: Manifests) -> list[str]:
        """Push the image of the manifests and return the repositories that it went to."""
        push_image(self.program, self.digest, manifests)
        return re.findall(r"--repository (\S+)", self._pushed.read_text())

    def error(self, manifests: Manifests) -> str:
        """Return what is said of an image that can't be pushed."""
        with pytest.raises(click.ClickException) as refused:
            self.push(manifests)
        return str(refused.value)


@pytest.fixture
def pusher(tmp_path: Path) -> Pusher:
    """Return a program that writes down where it was to push to."""
    return Pusher(tmp_path)


@pytest.mark.parametrize(
    "pod",
    [
        {"containers": [SIDECAR, OURS]},
        {"containers": [OURS, SIDECAR]},
        {"initContainers": [SIDECAR | {"restartPolicy": "Always"}], "containers": [OURS]},
        {"initContainers": [OURS], "containers": [SIDECAR]},
        {"initContainers": [SIDECAR, OURS], "containers": [SIDECAR, OURS]},
    ],
)
def test_the_image_goes_to_its_own_repository(pusher: Pusher, pod: dict[str, list[dict[str, str]]]) -> None:
    """Whatever was put before its container: it is known by the digest that was built."""
    assert pusher.push(of_pods(**pod)) == ["registry.example.com/app"]


def test_an_image_that_is_in_two_places_is_pushed_to_both(pusher: Pusher) -> None:
    """An overlay may take it from two registries."""
    other = OURS | {"image": f"mirror.example.com/app@{DIGEST}"}
    assert pusher.push(of_pods(initContainers=[OURS], containers=[other])) == [
        "registry.example.com/app",
        "mirror.example.com/app",
    ]


def test_what_nobody_runs_is_not_pushed(pusher: Pusher) -> None:
    """A digest that an overlay pins by hand is another image, which the error shows."""
    error = pusher.error(of_pods(containers=[SIDECAR]))
    assert f"no container has the image that was built, {DIGEST}" in error
    assert SIDECAR["image"] in error


def test_what_is_said_while_it_is_pushed_is_shown(
    pusher: Pusher, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A push takes minutes, and its program draws a bar that has no end of line."""
    pusher.is_a("printf '50%%\\r' >&2; exit 7")
    assert "was not pushed to registry.example.com/app (exit code 7)" in pusher.error(
        of_pods(containers=[OURS])
    )
    assert b"50%\r" in capfdbinary.readouterr().err


@pytest.mark.parametrize(
    ("image", "host", "name"),
    [
        ("app", "docker.io", "library/app"),
        ("somebody/app", "docker.io", "somebody/app"),
        ("localhost/app", "localhost", "app"),
        ("registry:5000/team/app", "registry:5000", "team/app"),
        ("registry.example.com/app:v1", "registry.example.com", "app"),
    ],
)
def test_who_refused_is_told_of_a_name_without_a_registry_too(
    pusher: Pusher, image: str, host: str, name: str
) -> None:
    """Such a name is one of Docker Hub, and not the name of a registry."""
    pusher.is_a("echo 'DENIED: no' >&2; exit 1")
    error = pusher.error(of_pods(containers=[OURS | {"image": f"{image}@{DIGEST}"}]))
    assert f"not pushed to {host}/{name} (exit code 1)" in error
    assert f"logged in at {host} may not write to {name}," in error


def test_a_tag_beside_the_digest_is_not_part_of_the_repository(pusher: Pusher) -> None:
    """Skopeo refuses both at once."""
    image = f"registry.example.com:5000/app:v1@{DIGEST}"
    assert pusher.push(of_pods(containers=[OURS | {"image": image}])) == ["registry.example.com:5000/app"]


def test_a_program_for_credentials_that_is_missing_is_told(pusher: Pusher) -> None:
    """As in closed mode, where the machine's own programs are not there."""
    pusher.is_a("""echo 'error getting credentials: exec: "docker-credential-ecr": not found' >&2; exit 1""")
    assert "in closed mode have the login itself in that file" in pusher.error(of_pods(containers=[OURS]))


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Return an OCI layout of an image with nothing in it."""
    folder = tmp_path / "layout"
    (folder / "blobs/sha256").mkdir(parents=True)

    def add(media_type: str, **content: object) -> dict[str, object]:
        blob = json.dumps(content).encode()
        digest = hashlib.sha256(blob).hexdigest()
        (folder / "blobs/sha256" / digest).write_bytes(blob)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(blob)}

    of = "application/vnd.oci.image."
    config = add(
        f"{of}config.v1+json", architecture="amd64", os="linux", rootfs={"type": "layers", "diff_ids": []}
    )
    image = add(
        f"{of}manifest.v1+json", schemaVersion=2, mediaType=f"{of}manifest.v1+json", config=config, layers=[]
    )
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [image]}))
    return folder


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A registry that says the same to every upload."""

    status = http.HTTPStatus.OK
    code = ""

    def do_GET(self) -> None:
        self._answer(http.HTTPStatus.OK, {})

    def do_HEAD(self) -> None:
        self._answer(http.HTTPStatus.NOT_FOUND, {})

    def do_POST(self) -> None:
        self._answer(self.status, {"errors": [{"code": self.code, "message": "no"}]})

    def _answer(self, status: int, content: object) -> None:
        self.send_response(status)
        body = json.dumps(content).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the library's)
        pass


@contextmanager
def registry(status: int, code: str) -> Iterator[http.server.HTTPServer]:
    """Serve a registry that refuses uploads so."""
    handler = type("Handler", (_Refusing,), {"status": status, "code": code})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


REFUSALS = {
    "who are you": (401, "UNAUTHORIZED", r"crane auth login {host}`"),
    "not you": (403, "DENIED", r"may not write to app"),
    "no repository": (404, "NAME_UNKNOWN", r"has no repository app"),
    "nothing there": (404, "NOT_FOUND", r"has no repository app"),
    "too often": (429, "TOOMANYREQUESTS", r"takes no more requests for now: wait"),
    "its own fault": (503, "UNAVAILABLE", r"has a fault of its own"),
}


@needs_crane
@pytest.mark.parametrize("name", REFUSALS)
def test_a_registry_that_refuses_is_told_with_what_helps(pusher: Pusher, layout: Path, name: str) -> None:
    """What crane says of each is followed by what its reader can do."""
    status, code, helps = REFUSALS[name]
    pusher.is_a(f'crane push {layout} "$2"')
    with registry(status, code) as server:
        host = f"127.0.0.1:{server.server_port}"
        error = pusher.error(of_pods(containers=[OURS | {"image": f"{host}/app@{DIGEST}"}]))
    assert re.search(helps.format(host=host), error), error


@needs_crane
def test_a_registry_that_is_not_trusted_is_told_with_what_helps(pusher: Pusher, layout: Path) -> None:
    """A certificate of an authority that this machine does not know is no riddle."""
    pusher.is_a(f'crane push {layout} "$2"')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with registry(401, "UNAUTHORIZED") as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        host = f"127.0.0.1:{server.server_port}"
        error = pusher.error(of_pods(containers=[OURS | {"image": f"{host}/app@{DIGEST}"}]))
    assert "has a certificate that this machine does not trust" in error


@needs_crane
def test_a_registry_that_is_not_there_is_told_with_what_helps(pusher: Pusher, layout: Path) -> None:
    """The name may be that of the files that nobody changed."""
    pusher.is_a(f'crane push {layout} "$2"')
    error = pusher.error(of_pods(containers=[OURS | {"image": f"127.0.0.1:1/app@{DIGEST}"}]))
    assert "127.0.0.1:1 can't be reached from here" in error
