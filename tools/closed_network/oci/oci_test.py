import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path("tools/closed_network/oci").absolute()

needs_crane = pytest.mark.skipif(not shutil.which("crane"), reason="needs crane on PATH")


def blob(layout: str, descriptor: dict) -> dict:
    """Return the JSON that a descriptor of a layout stands for."""
    return json.loads((HERE / layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes())


def root(layout: str) -> dict:
    """Return the descriptor of a layout's image or index."""
    (descriptor,) = json.loads((HERE / layout / "index.json").read_bytes())["manifests"]
    return descriptor


def config(layout: str) -> dict:
    """Return the configuration of a layout's image."""
    return blob(layout, blob(layout, root(layout))["config"])


def test_image_says_how_to_run_it():
    """What a target sets is in the configuration, over what its base sets."""
    assert config("app")["config"] == {
        "Entrypoint": ["/app", "--name=it's"],  # and the base's Cmd is gone, as with rules_oci
        "Env": ["PATH=/opt/bin:/usr/bin", "PLUGINS=/opt/bin:/usr/bin:"],
        "ExposedPorts": {"50051/tcp": {}},
        "Labels": {"org.opencontainers.image.title": "base", "org.opencontainers.image.version": "1"},
        "User": "65532",
        "Volumes": {"/data": {}},
        "WorkingDir": "/data",
    }
    assert config("app")["created"] == "2026-01-02T03:04:05Z"
    assert blob("app", root("app"))["annotations"] == {"org.opencontainers.image.licenses": "Apache-2.0"}


def test_labels_may_be_a_file():
    """Labels that a program writes, such as stamps, are lines of a file."""
    assert config("arm64")["config"]["Labels"] == {"title": "arm64", "equation": "1 + 1 = 2"}


def test_layers_are_the_bases_and_then_the_images_own():
    """A layer keeps its compression, and the configuration has the digest of what is in it."""
    layers = blob("app", root("app"))["layers"]
    assert [layer["mediaType"].rpartition(".")[2] for layer in layers] == ["tar", "tar+gzip"]
    # Both hold the same file.
    assert len(set(config("app")["rootfs"]["diff_ids"])) == 1


def test_digest_target_names_the_image():
    """NAME.digest is a file with the digest that the layout has."""
    assert (HERE / "app.json.sha256").read_text() == root("app")["digest"] + "\n"


def test_index_names_each_platform():
    """An index has an entry for each image, with its platform."""
    manifests = blob("index", root("index"))["manifests"]
    assert [manifest["platform"] for manifest in manifests] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux", "variant": "v8"},
    ]
    assert blob("index", manifests[1])["layers"]


@pytest.fixture
def registry():
    """Run a registry in memory; return its address."""
    command = ["crane", "registry", "serve", "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield f"127.0.0.1:{re.search(r'port (\d+)', process.stderr.readline())[1]}"
        finally:
            process.terminate()


@needs_crane
@pytest.mark.parametrize(
    ("target", "layout", "tags"),
    [("push", "app", {"latest", "1.0"}), ("push_index", "index", {"from-file", "another", "1.0"})],
)
def test_push_sends_the_digest_and_the_tags(registry, target, layout, tags):
    """The registry has what was built, under each tag; crane finds no fault with it."""
    repository = f"{registry}/team/{layout}"
    subprocess.run([HERE / f"push_{target}.sh", "--repository", repository, "--tag", "1.0"], check=True)
    listed = subprocess.run(["crane", "ls", repository], check=True, capture_output=True, text=True)
    assert set(listed.stdout.split()) == tags
    for tag in tags:
        digest = subprocess.run(["crane", "digest", f"{repository}:{tag}"], check=True, capture_output=True)
        assert digest.stdout.decode().strip() == root(layout)["digest"]
    # --fast, because crane takes every layer of a registry for a compressed one.
    subprocess.run(["crane", "validate", "--fast", "--remote", f"{repository}:1.0"], check=True)


@needs_crane
def test_push_without_repository_says_what_to_pass():
    """A target that names no repository needs the flag."""
    result = subprocess.run([HERE / "push_push.sh"], check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert "pass --repository" in result.stderr


@needs_crane
def test_load_streams_an_archive_to_the_engine(tmp_path):
    """What the engine's `load` gets is an archive in which crane finds no fault, with the name in it."""
    archive = tmp_path / "archive.tar"
    engine = tmp_path / "docker"
    # `load --input FILE`, or the archive on standard input
    engine.write_text(f'#!/bin/sh\n[ "$1" = load ] && cat "${{3:--}}" >{archive}\n')
    engine.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run([HERE / "load.sh"], env=environment, check=True)
    listing = subprocess.run(["tar", "xOf", archive, "manifest.json"], check=True, capture_output=True)
    assert json.loads(listing.stdout)[0]["RepoTags"] == ["app:latest"]
    subprocess.run(["crane", "validate", "--tarball", archive], check=True)
