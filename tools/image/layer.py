"""Writes one layer of an image: a compressed tar of files, the same bytes for the same files.

Entries are sorted, belong to root and are of 1970. Python sources get their bytecode beside
them, so that an interpreter that can't write (a read-only root file system) need not compile.
"""

import argparse
import gzip
import io
import py_compile
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tools.image.machines import platform_of

FOLDER, EXECUTABLE, FILE = 0o755, 0o755, 0o644

_START = '''"""Runs {module} with the packages of the image."""

import runpy
import sys

sys.path.insert(1, "{packages}")
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
'''


class LayerError(Exception):
    """What was given makes no layer; the text is for the person who builds."""


def placed(
    files: Iterable[tuple[str, Path]], roots: list[str], left_out: list[str]
) -> dict[PurePosixPath, Path]:
    """Return where each file goes: its path below the longest of the roots that hold it.

    Args:
        files: paths in the runfiles, and where the content is.
        roots: folders of the runfiles; a file below none of them is left out.
        left_out: patterns (fnmatch's) of paths below a root.

    Raises:
        LayerError: two files with different contents go to the same place.

    """
    result: dict[PurePosixPath, Path] = {}
    for name, source in files:
        root = max((root for root in roots if name.startswith(root + "/")), key=len, default=None)
        path = PurePosixPath(name).relative_to(root) if root else None
        if path is None or "__pycache__" in path.parts or any(fnmatch(str(path), out) for out in left_out):
            continue
        other = result.setdefault(path, source)
        if other != source and other.read_bytes() != source.read_bytes():
            raise LayerError(f"{path}: {other} and {source} differ, but both go there")
    return result


def bytecode(source: bytes, path: str) -> bytes | None:
    """Return the content of a .pyc that is never checked against its source, nor holds its time.

    Args:
        source: the content of the .py file.
        path: the absolute path that it has in the image, which tracebacks show.

    Returns:
        None for what is no Python, such as a template.

    """
    with tempfile.TemporaryDirectory() as folder:
        file, compiled = Path(folder, "source.py"), Path(folder, "source.pyc")
        file.write_bytes(source)
        try:
            py_compile.compile(
                str(file),
                str(compiled),
                dfile=path,
                doraise=True,
                optimize=0,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except py_compile.PyCompileError:
            return None
        return compiled.read_bytes()


def require_platform(contents: dict[PurePosixPath, bytes], platform: str) -> None:
    """Let nothing through that the image's machine can't load.

    Raises:
        LayerError: a program or library is for another platform.

    """
    for path, content in contents.items():
        found = platform_of(content)
        if found not in {None, platform}:
            raise LayerError(f"{path} is for {found}, but the image is for {platform}")


def with_bytecode(contents: dict[PurePosixPath, bytes], prefix: PurePosixPath) -> dict[PurePosixPath, bytes]:
    """Return the files of a layer and the bytecode of those that are Python."""
    result = dict(contents)
    for path, content in sorted(contents.items()):
        if path.suffix == ".py" and (compiled := bytecode(content, f"/{prefix / path}")):
            tag = sys.implementation.cache_tag
            result[path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc"] = compiled
    return result


def write(
    output: Path, prefix: PurePosixPath, contents: dict[PurePosixPath, bytes], executables: set[PurePosixPath]
) -> None:
    """Write the tar: each folder, then what is in it."""
    with (
        output.open("wb") as file,
        # Neither a name nor a time in gzip's header.
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        paths = {prefix / path: content for path, content in contents.items()}
        folders = {parent for path in paths for parent in path.parents if parent.name}
        for path in sorted(folders | paths.keys()):
            member = tarfile.TarInfo(str(path))
            if path in folders:
                member.type, member.mode = tarfile.DIRTYPE, FOLDER
                tar.addfile(member)
            else:
                member.mode = EXECUTABLE if path.relative_to(prefix) in executables else FILE
                member.size = len(paths[path])
                tar.addfile(member, io.BytesIO(paths[path]))


def _pairs(lines: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for line in lines:
        name, _, source = line.partition("=")
        yield name, Path(source)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, fromfile_prefix_chars="@")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prefix", type=PurePosixPath, required=True, help="where in the image")
    parser.add_argument("--platform", required=True, help="OCI's name of it, such as linux/arm64")
    parser.add_argument("--root", action="append", default=[], help="a folder of the runfiles")
    parser.add_argument("--leave-out", action="append", default=[], help="a pattern of paths below a root")
    parser.add_argument("--executable", default="", help="NAME=FILE, a program for bin/")
    parser.add_argument("--start", default="", help="the module that a __main__.py runs")
    parser.add_argument("--packages", default="", help="the folder of the image that it imports from, too")
    parser.add_argument("files", nargs="*", metavar="RUNFILES_PATH=FILE")
    return parser.parse_args()


def main() -> None:
    """Write the layer that the command line describes."""
    arguments = _arguments()
    files = placed(_pairs(arguments.files), arguments.root, arguments.leave_out)
    executables = {PurePosixPath("bin", name): file for name, file in _pairs([arguments.executable]) if name}
    contents = {path: source.read_bytes() for path, source in (files | executables).items()}
    require_platform(contents, arguments.platform)
    if module := arguments.start:
        if PurePosixPath(module.replace(".", "/") + ".py") not in contents:
            raise LayerError(f"no module {module}: call the binary what its main file is called")
        start = _START.format(module=module, packages=arguments.packages)
        contents[PurePosixPath("__main__.py")] = start.encode()
    contents = with_bytecode(contents, arguments.prefix)
    write(arguments.output, arguments.prefix, contents, set(executables))


if __name__ == "__main__":
    try:
        main()
    except LayerError as error:
        sys.exit(f"error: {error}")
