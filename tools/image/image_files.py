"""Reads the files of an image in an OCI layout."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """What a layer has at a path."""

    member: tarfile.TarInfo
    content: bytes


@dataclass(frozen=True)
class Image:
    """An image; `layout` is the folder of an OCI layout with only this one in it."""

    layout: Path

    def digest(self) -> str:
        """Return the digest of the image's manifest, by which registries know it."""
        return str(_read(self.layout / "index.json")["manifests"][0]["digest"])

    def manifest(self) -> dict[str, Any]:
        """Return the manifest."""
        return _read(self._blob(self.digest()))

    def config(self) -> dict[str, Any]:
        """Return how it is run, its platform and history."""
        return _read(self._blob(self.manifest()["config"]["digest"]))

    def layers(self) -> list[Path]:
        """Return the layers, the base's first."""
        return [self._blob(layer["digest"]) for layer in self.manifest()["layers"]]

    def entries(self) -> dict[str, Entry]:
        """Return all files, links and folders by their path, without the first slash."""
        return {path: entry for layer in self.layers() for path, entry in layer_entries(layer)}

    def files(self) -> dict[str, bytes]:
        """Return the content of each file by its path."""
        return {path: entry.content for path, entry in self.entries().items() if entry.member.isfile()}

    def _blob(self, digest: str) -> Path:
        return self.layout / "blobs" / digest.replace(":", "/")


def layer_entries(layer: Path) -> Iterator[tuple[str, Entry]]:
    """Yield what a layer holds, in the order of the tar."""
    with tarfile.open(layer) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            # Some writers begin paths with "./".
            yield member.name.removeprefix("./"), Entry(member, file.read() if file else b"")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content
