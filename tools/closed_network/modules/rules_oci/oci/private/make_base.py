"""Makes the base layer of images from a Debian root: ROOT OUTPUT.

It holds what the root's Python and wheels link to, found by asking the dynamic loader, and
what programs expect of a system: certificates, time zones, users. As in distroless images,
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

LINKS = {"/lib": "usr/lib", "/lib64": "usr/lib64", "/etc/os-release": "../usr/lib/os-release"}

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


def linked_to() -> set[Path]:
    """Return the libraries, and the links to them, that Python and wheels need."""
    programs = list(Path("/usr/bin").glob("python3.[0-9]*"))
    extensions = [
        path
        for path in Path("/usr/lib").glob("python3.*/lib-dynload/*.so")
        if not any(fnmatch(path.name, pattern) for pattern in NOT_IN_IMAGES)
    ]
    folder = Path(_loaded([*programs])[0]).resolve().parent
    wheels = [folder / name for name in WHEELS_LINK_TO]
    found = {*_loaded([*programs, *extensions, *wheels]), *wheels}
    return found | {path.resolve() for path in found}


def _loaded(files: list[Path]) -> list[Path]:
    command: list[str | Path] = ["ldd", *files]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if missing := re.findall(r"(\S+) => not found", output):
        sys.exit(f"not in the root: {', '.join(missing)}")
    # ldd names /lib and /lib64, which are links to folders below /usr.
    paths = re.findall(r"^\s(?:\S+ => )?(/\S+) \(", output, re.MULTILINE)
    return sorted({Path("/usr") / path.removeprefix("/usr/").removeprefix("/") for path in paths})


class Dpkg:
    """What dpkg knows of a root."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "var/lib/dpkg"
        self._owners = {
            path: file.stem.partition(":")[0]
            for file in sorted(self._folder.glob("info/*.list"))
            for path in file.read_text().splitlines()
        }

    def owner(self, path: Path) -> str:
        """Return the name of the package that a file is from."""
        if package := self._owners.get(str(path)):
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

    def copy(self, path: Path) -> bytes:
        """Add a file or link of the root; return what identifies its content."""
        if path.is_symlink():
            self.link(str(path), str(path.readlink()))
            return str(path.readlink()).encode()
        content = path.read_bytes()
        # The kernel starts the loader; nothing else here is a program.
        self.file(str(path), content, 0o755 if path.name.startswith("ld-linux") else 0o644)
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

    def __init__(self, root: Path) -> None:
        self._layer, self._dpkg = Layer(), Dpkg(root)
        self._sums: defaultdict[str, list[str]] = defaultdict(list)

    def add_libraries_and_data(self) -> None:
        """Add what Debian's packages have under the same path."""
        data = [file for folder in COPIED for file in _files(Path(folder))]
        for path in sorted([*linked_to(), *data]):
            self._of_package(self._dpkg.owner(path), str(path), self._layer.copy(path))

    def add_certificates(self) -> None:
        """Add the bundle; not the root's own, which is the machine's."""
        bundle = b"".join(path.read_bytes() for path in _files(Path(CERTIFICATES)))
        self._layer.file(BUNDLE, bundle)
        self._of_package("ca-certificates", BUNDLE, bundle)

    def add_system(self) -> None:
        """Add users, and the places that programs expect."""
        for path, target in LINKS.items():
            self._layer.link(path, target)
            self._of_package("base-files", path, target.encode())
        for path, text in WRITTEN.items():
            self._layer.file(path, text.encode())
        for path, (mode, owner) in FOLDERS.items():
            self._layer.folder(path, mode, owner)

    def add_packages(self) -> None:
        """Add what the packages are, with their licences."""
        for package in sorted(self._sums):
            text = Path("/usr/share/doc", package, "copyright")
            self._layer.file(str(text), text.read_bytes())
            self._of_package(package, str(text), text.read_bytes())
            status = f"/var/lib/dpkg/status.d/{package}"
            self._layer.file(status, self._dpkg.status(package).encode())
            self._layer.file(f"{status}.md5sums", "".join(sorted(self._sums[package])).encode())

    def write(self, output: Path) -> None:
        """Write the layer."""
        self._layer.write(output)

    def _of_package(self, package: str, path: str, content: bytes) -> None:
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()  # dpkg's kind
        self._sums[package].append(f"{digest}  {path.removeprefix('/')}\n")


def _files(path: Path) -> list[Path]:
    return [file for file in sorted(path.rglob("*")) if not file.is_dir()] if path.is_dir() else [path]


def main(root: Path, output: Path) -> None:
    """Write the base layer of a root."""
    base = Base(root)
    base.add_libraries_and_data()
    base.add_certificates()
    base.add_system()
    base.add_packages()
    base.write(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
