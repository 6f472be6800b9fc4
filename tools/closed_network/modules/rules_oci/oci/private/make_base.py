"""Makes the base layer of images from a tree of Debian's files: TREE OUTPUT.

It holds what the tree's Python and wheels link to, for whatever machine they are, and what
programs expect of a system: certificates, time zones, users. As in distroless images,
/var/lib/dpkg/status.d tells scanners which packages the files are from.
"""

import gzip
import hashlib
import io
import re
import subprocess
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

WHEELS_LINK_TO = ["libdl.so.2", "libgcc_s.so.1", "libpthread.so.0", "librt.so.1", "libstdc++.so.6"]
"""What the policy for portable wheels (PEP 600) lets them take from a system, beside libc and libm."""

NOT_IN_IMAGES = ["_curses*", "_dbm*", "_gdbm*", "_tkinter*", "*_test*", "readline*", "xx*"]
"""Modules of Python that py_image_layers leaves out."""

COPIED = ["/usr/lib/os-release", "/usr/share/zoneinfo"]

CERTIFICATES = "/usr/share/ca-certificates/mozilla"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"""Made of the certificates, and where programs look for it."""

LINKS = {"/lib": "usr/lib", "/etc/os-release": "../usr/lib/os-release"}
LINKS_OF_AMD64 = {"/lib64": "usr/lib64"}

WRITTEN = {
    "/etc/group": "root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
    "/etc/passwd": (
        "root:x:0:0:root:/root:/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
        "nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"
    ),
}

NONROOT = 65532
FOLDERS = {"/home/nonroot": (0o700, NONROOT), "/tmp": (0o1777, 0)}  # noqa: S108 (the image's)


def linked_to(tree: Path) -> set[Path]:
    """Return the libraries, and the links to them, that Python and wheels need."""
    (folder,) = (path.parent for path in tree.glob("usr/lib/*-linux-gnu/libc.so.6"))
    programs = list(tree.glob("usr/bin/python3.[0-9]*"))
    extensions = [
        path
        for path in tree.glob("usr/lib/python3.*/lib-dynload/*.so")
        if not any(fnmatch(path.name, pattern) for pattern in NOT_IN_IMAGES)
    ]
    found = {folder / name for name in WHEELS_LINK_TO}
    new = {*programs, *extensions, *found}
    while new:
        new = {folder / name for name in _needed(new)} - found
        found |= new
    if missing := [path.name for path in found if not path.exists()]:
        sys.exit(f"not in {folder}: {', '.join(sorted(missing))}")
    found |= {tree / "usr" / name.removeprefix("/") for name in _loaders(programs)}
    return found | {path.resolve() for path in found}


def _needed(files: Iterable[Path]) -> list[str]:
    return re.findall(r"\(NEEDED\)\s+Shared library: \[(.+)\]", _readelf("--dynamic", files))


def _loaders(programs: Iterable[Path]) -> list[str]:
    return re.findall(r"Requesting program interpreter: (/.+)\]", _readelf("--program-headers", programs))


def _readelf(question: str, files: Iterable[Path]) -> str:
    # Not ldd, which starts the program: it may be for another machine.
    command: list[str | Path] = ["readelf", "--wide", question, *sorted(files)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Dpkg:
    """What dpkg knows of a tree."""

    def __init__(self, tree: Path) -> None:
        self._folder = tree / "var/lib/dpkg"
        self._owners = {
            path: file.stem.partition(":")[0]
            for file in sorted(self._folder.glob("info/*.list"))
            for path in file.read_text().splitlines()
        }

    def owner(self, path: str) -> str:
        """Return the name of the package that a file is from."""
        if package := self._owners.get(path):
            return package
        sys.exit(f"{path} is of no Debian package")

    def status(self, package: str) -> str:
        """Return the paragraph that describes an installed package."""
        paragraphs = (self._folder / "status").read_text().split("\n\n")
        return next(text for text in paragraphs if text.startswith(f"Package: {package}\n")) + "\n"


class Layer:
    """A tar whose entries belong to root and are of 1970, sorted."""

    def __init__(self) -> None:
        self._members: dict[str, tuple[tarfile.TarInfo, bytes]] = {}

    def folder(self, path: str, mode: int = 0o755, owner: int = 0) -> None:
        """Add a folder."""
        member = self._add(path, tarfile.DIRTYPE, mode)
        member.uid = member.gid = owner

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, tarfile.SYMTYPE, 0o777).linkname = target

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file."""
        self._add(path, tarfile.REGTYPE, mode, content).size = len(content)

    def copy(self, path: str, source: Path) -> bytes:
        """Add a file or link of a tree; return what identifies its content."""
        if source.is_symlink():
            self.link(path, str(source.readlink()))
            return str(source.readlink()).encode()
        content = source.read_bytes()
        # The kernel starts the loader; nothing else here is a program.
        self.file(path, content, 0o755 if source.name.startswith("ld-linux") else 0o644)
        return content

    def _add(self, path: str, kind: bytes, mode: int, content: bytes = b"") -> tarfile.TarInfo:
        member = tarfile.TarInfo(path.removeprefix("/"))
        member.type, member.mode = kind, mode
        for parent in Path(member.name).parents:
            if parent.name and str(parent) not in self._members:
                self.folder(str(parent))
        self._members[member.name] = member, content
        return member

    def write(self, output: Path) -> None:
        """Write all that was added."""
        with (
            output.open("wb") as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w") as tar,
        ):
            for _, (member, content) in sorted(self._members.items()):
                tar.addfile(member, io.BytesIO(content))


class Base:
    """The layer, and the checksums that tell which package each of its files is from."""

    def __init__(self, tree: Path) -> None:
        self._tree, self._layer, self._dpkg = tree, Layer(), Dpkg(tree)
        self._sums: defaultdict[str, list[str]] = defaultdict(list)

    def add_libraries_and_data(self) -> None:
        """Add what Debian's packages have under the same path."""
        data = [file for path in COPIED for file in _files(self._below(path))]
        for source in sorted([*linked_to(self._tree), *data]):
            path = f"/{source.relative_to(self._tree)}"
            self._of_package(self._dpkg.owner(path), path, self._layer.copy(path, source))

    def add_certificates(self) -> None:
        """Add the bundle; not the root's own, which is the machine's."""
        bundle = b"".join(path.read_bytes() for path in _files(self._below(CERTIFICATES)))
        self._layer.file(BUNDLE, bundle)
        self._of_package("ca-certificates", BUNDLE, bundle)

    def add_system(self) -> None:
        """Add users, and the places that programs expect."""
        amd64 = self._below("/usr/lib64").exists()
        for path, target in (LINKS | (LINKS_OF_AMD64 if amd64 else {})).items():
            self._layer.link(path, target)
            self._of_package("base-files", path, target.encode())
        for path, text in WRITTEN.items():
            self._layer.file(path, text.encode())
        for path, (mode, owner) in FOLDERS.items():
            self._layer.folder(path, mode, owner)

    def add_packages(self) -> None:
        """Add what the packages are, with their licences."""
        for package in sorted(self._sums):
            path = f"/usr/share/doc/{package}/copyright"
            text = self._below(path).read_bytes()
            self._layer.file(path, text)
            self._of_package(package, path, text)
            status = f"/var/lib/dpkg/status.d/{package}"
            self._layer.file(status, self._dpkg.status(package).encode())
            self._layer.file(f"{status}.md5sums", "".join(sorted(self._sums[package])).encode())

    def write(self, output: Path) -> None:
        """Write the layer."""
        self._layer.write(output)

    def _below(self, path: str) -> Path:
        return self._tree / path.removeprefix("/")

    def _of_package(self, package: str, path: str, content: bytes) -> None:
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()  # dpkg's kind
        self._sums[package].append(f"{digest}  {path.removeprefix('/')}\n")


def _files(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if not file.is_dir()] if path.is_dir() else [path]


def main(tree: Path, output: Path) -> None:
    """Write the base layer of a tree."""
    base = Base(tree.resolve())
    base.add_libraries_and_data()
    base.add_certificates()
    base.add_system()
    base.add_packages()
    base.write(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
