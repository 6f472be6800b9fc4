"""Brings an image to podman, docker or nerdctl."""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import IO

ENGINES = ["docker", "podman", "nerdctl"]


def _docker_files(image: Path, tags: list[str]) -> dict[str, bytes]:
    (root,) = json.loads((image / "index.json").read_bytes())["manifests"]
    manifest = json.loads(_blob(image, root).read_bytes())
    if "layers" not in manifest:
        sys.exit("error: the docker format holds one image only; set format = 'oci' to load an index")
    entry = {
        "Config": str(_blob(image, manifest["config"]).relative_to(image)),
        "RepoTags": tags,
        "Layers": [str(_blob(image, layer).relative_to(image)) for layer in manifest["layers"]],
    }
    return {"manifest.json": json.dumps([entry]).encode()}


def _oci_files(image: Path, tags: list[str]) -> dict[str, bytes]:
    index = json.loads((image / "index.json").read_bytes())
    (descriptor,) = index["manifests"]
    names = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
    index["manifests"] = [descriptor | {"annotations": dict.fromkeys(names, tag)} for tag in tags]
    return {"index.json": json.dumps(index).encode(), "oci-layout": (image / "oci-layout").read_bytes()}


def _blob(image: Path, descriptor: dict) -> Path:
    return image / "blobs" / descriptor["digest"].replace(":", "/")


def _write_archive(image: Path, files: dict[str, bytes], stream: IO[bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for path in sorted((image / "blobs").rglob("*")):
            if path.is_file():
                archive.add(path.resolve(), str(path.relative_to(image)))


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path, help="an OCI layout (the target gives it)")
    parser.add_argument("--format", choices=["docker", "oci"], default="docker")
    parser.add_argument("-t", "--tag", action="append", default=[], help="a name:tag for it; may be repeated")
    parser.add_argument("--tags-file", type=Path, help="a file with one name:tag a line")
    arguments = parser.parse_args()

    engine = next(filter(None, map(shutil.which, ENGINES)), None)
    if not engine:
        sys.exit(f"error: none of {', '.join(ENGINES)} is on PATH")
    tags = arguments.tag + (arguments.tags_file.read_text().split() if arguments.tags_file else [])
    files = (_docker_files if arguments.format == "docker" else _oci_files)(arguments.image, tags)
    with subprocess.Popen([engine, "load"], stdin=subprocess.PIPE) as process:
        _write_archive(arguments.image, files, process.stdin)
    sys.exit(process.returncode)


if __name__ == "__main__":
    _main()
