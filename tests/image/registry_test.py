"""Images pushed to a real registry, and run from there."""

import http
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.image.podman import PUSH, serving
from tools.image.image_files import Image

REGISTRY = "docker-registry"

MEDIA_TYPES = [f"application/vnd.oci.image.{kind}.v1+json" for kind in ("index", "manifest")]

_CONFIG = """
version: 0.1
log: {{formatter: json}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:0"}}
"""

pytestmark = pytest.mark.skipif(
    not shutil.which(REGISTRY), reason=f"there is no registry to push to: this machine lacks {REGISTRY}"
)


@pytest.fixture
def registry(tmp_path):
    """Run a registry on a free port, with an empty folder; return its address."""
    config = tmp_path / "registry.yaml"
    config.write_text(_CONFIG.format(folder=tmp_path / "registry"))
    with (
        (tmp_path / "registry.log").open("w") as log,
        subprocess.Popen(
            [REGISTRY, "serve", config], stdout=log, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            address = next(
                filter(None, (re.search(r"listening on (127[\d.]+:\d+)", line) for line in process.stderr))
            )
            # It would stop once the pipe were full, after about twenty layers.
            threading.Thread(target=process.stderr.read).start()
            yield address[1]
        finally:
            process.kill()


def push(registry: str, *arguments: str) -> None:
    """Push the server's image as a deployment does."""
    command = [PUSH, "--repository", f"{registry}/team/user-service", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def tags(registry: str) -> list[str]:
    """Return the tags of what was pushed."""
    try:
        with urllib.request.urlopen(f"http://{registry}/v2/team/user-service/tags/list") as answer:
            return json.load(answer)["tags"]
    except urllib.error.HTTPError as error:
        assert error.code == http.HTTPStatus.NOT_FOUND, "how it says that there is none"
        return []


def manifest(registry: str, digest: str) -> dict[str, Any]:
    """Return the manifest that the registry has under a digest."""
    request = urllib.request.Request(
        f"http://{registry}/v2/team/user-service/manifests/{digest}",
        headers={"Accept": ", ".join(MEDIA_TYPES)},
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310 (our own address)
        content: dict[str, Any] = json.load(answer)
        return content


def test_push_is_by_digest(registry):
    """The index of both images is there under its digest, and no tag moves unless one is given."""
    push(registry)
    index = Image(Path("services/user/image"))
    assert manifest(registry, index.digest()) == index.manifest()
    platforms = [each["platform"]["architecture"] for each in index.manifest()["manifests"]]
    for architecture in platforms:
        image = Image(Path(f"services/user/image_{architecture}"))
        assert manifest(registry, image.digest()) == image.manifest()
    assert platforms == ["amd64", "arm64"]
    assert tags(registry) == []
    push(registry, "--tag", "1.2.3")
    assert tags(registry) == ["1.2.3"]


def test_pulled_image_serves(registry, podman, flags, volume):
    """A machine that knows only the digest pulls the image and runs it."""
    push(registry)
    reference = f"{registry}/team/user-service@{Image(Path('services/user/image')).digest()}"
    started = time.monotonic()
    podman("pull", "--tls-verify=false", reference)
    pulled = time.monotonic() - started
    with serving(podman, "pulled", *flags, volume, reference) as server:
        print(f"pulled in {pulled:.2f} s, then started to serving in {server.seconds_to_serving:.2f} s")
        assert server.probe("readiness") == "status: SERVING\n"
        server.terminate()
        assert server.wait()[0] == 0
