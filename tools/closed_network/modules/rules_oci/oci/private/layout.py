"""Writes an OCI image layout: an image from tar layers, or an index of images.

The same inputs give the same bytes. The forms are those of
https://github.com/opencontainers/image-spec (version 1.1).
"""

import argparse
import gzip
import hashlib
import json
import shutil
import string
from collections import defaultdict
from collections.abc import Callable
from compression import zstd
from pathlib import Path

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"

# (the first bytes of a file, how it is called, how it is read)
COMPRESSIONS = [(b"\x1f\x8b", "+gzip", gzip.open), (b"\x28\xb5\x2f\xfd", "+zstd", zstd.open)]


class Layout:
    """A folder with an OCI layout."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """Return where the blob with a digest is."""
        return self._folder / "blobs" / digest.replace(":", "/")

    def read(self, descriptor: dict) -> dict:
        """Return the JSON that a descriptor stands for."""
        return json.loads(self.blob(descriptor["digest"]).read_bytes())

    def root(self) -> dict:
        """Return the descriptor of the layout's image or index."""
        return json.loads((self._folder / "index.json").read_bytes())["manifests"][0]

    def add_json(self, media_type: str, content: dict) -> dict:
        """Keep JSON as a blob and return its descriptor."""
        data = _canonical(content)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blob(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def add_layer(self, tar: Path) -> tuple[dict, str]:
        """Keep a layer; return its descriptor and the digest of what is in it, uncompressed."""
        suffix, opened = _compression(tar)
        digest = _file_digest(tar, open)
        shutil.copyfile(tar, self.blob(digest))
        descriptor = {"mediaType": LAYER + suffix, "digest": digest, "size": tar.stat().st_size}
        return descriptor, _file_digest(tar, opened) if suffix else digest

    def add_blobs_of(self, other: Layout) -> None:
        """Keep all that another layout has."""
        shutil.copytree(other._folder / "blobs", self._folder / "blobs", dirs_exist_ok=True)

    def finish(self, descriptor: dict) -> None:
        """Make a descriptor the layout's only entry."""
        (self._folder / "oci-layout").write_bytes(_canonical({"imageLayoutVersion": "1.0.0"}))
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}
        (self._folder / "index.json").write_bytes(_canonical(index))


def _canonical(content: dict) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _compression(tar: Path) -> tuple[str, Callable]:
    with tar.open("rb") as file:
        start = file.read(4)
    for magic, suffix, opened in COMPRESSIONS:
        if start.startswith(magic):
            return suffix, opened
    return "", open


def _file_digest(path: Path, opened: Callable) -> str:
    with opened(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _write_image(
    layout: Layout, settings: dict, base: Path | None, created: Path | None, tars: list[Path]
) -> dict:
    config, layers, annotations = {"rootfs": {"type": "layers", "diff_ids": []}, "config": {}}, [], {}
    if base:
        config, layers, annotations = _read_base(layout, Layout(base))
    if created:
        config["created"] = created.read_text()
    for tar in tars:
        descriptor, diff_id = layout.add_layer(tar)
        layers.append(descriptor)
        config["rootfs"]["diff_ids"].append(diff_id)
    _configure(config, settings)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.add_json(CONFIG, config),
        "layers": layers,
        "annotations": annotations | settings["annotations"],
    }
    platform = {key: config[key] for key in ("architecture", "os", "variant") if key in config}
    return layout.add_json(MANIFEST, manifest) | {"platform": platform}


def _read_base(layout: Layout, base: Layout) -> tuple[dict, list, dict]:
    layout.add_blobs_of(base)
    manifest = base.read(base.root())
    return base.read(manifest["config"]), manifest["layers"], manifest.get("annotations", {})


def _configure(config: dict, settings: dict) -> None:
    runtime, given = config.setdefault("config", {}), settings["config"]
    config.update({key: value for key, value in given.items() if key != "config"})
    if "Entrypoint" in given["config"]:
        runtime.pop("Cmd", None)
    for key, value in given["config"].items():
        runtime[key] = runtime.get(key, {}) | value if isinstance(value, dict) else value
    env = dict(pair.split("=", 1) for pair in runtime.get("Env", []))
    for key, value in settings["env"].items():
        env[key] = string.Template(value).safe_substitute(defaultdict(str, env))
    runtime["Env"] = [f"{key}={value}" for key, value in env.items()]


def _write_index(layout: Layout, images: list[Path]) -> dict:
    sources = [Layout(image) for image in images]
    for source in sources:
        layout.add_blobs_of(source)
    manifests = [source.root() for source in sources]
    return layout.add_json(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("digest", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    image = commands.add_parser("image")
    image.add_argument("--settings", type=Path, required=True)
    image.add_argument("--base", type=Path)
    image.add_argument("--created", type=Path)
    image.add_argument("--labels-file", type=Path)
    image.add_argument("tars", type=Path, nargs="*")
    commands.add_parser("index").add_argument("images", type=Path, nargs="+")
    arguments = parser.parse_args()

    layout = Layout(arguments.output)
    if arguments.command == "index":
        descriptor = _write_index(layout, arguments.images)
    else:
        settings = json.loads(arguments.settings.read_bytes())
        if arguments.labels_file:
            lines = arguments.labels_file.read_text().splitlines()
            settings["config"]["config"]["Labels"] = dict(line.split("=", 1) for line in lines)
        descriptor = _write_image(layout, settings, arguments.base, arguments.created, arguments.tars)
    layout.finish(descriptor)
    arguments.digest.write_text(f"{descriptor['digest']}\n")


if __name__ == "__main__":
    _main()
