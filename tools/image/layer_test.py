import marshal
import os
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from tools.image import layer
from tools.image.layer import LayerError, bytecode, placed

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

PLATFORM = "--platform=linux/arm64"

SOURCE = """
NAMES = {"one", "two", "three"}

def is_known(name: str) -> bool:
    return name in NAMES | {"x", "y"}
"""


def make(folder: Path, *arguments: str, files: dict[str, str], seed: str = "0", mtime: float = 0) -> Path:
    """Write files (by their path in the runfiles) below a folder, and the layer that is made of them."""
    pairs = []
    for name, content in files.items():
        file = folder / "sources" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        os.utime(file, (mtime, mtime))
        pairs.append(f"{name}={file}")
    output = folder / "layer.tar.gz"
    command = [
        sys.executable,
        layer.__file__,
        f"--output={output}",
        "--prefix=opt/app",
        PLATFORM,
        *arguments,
        *pairs,
    ]
    subprocess.run(command, env=ENVIRONMENT | {"PYTHONHASHSEED": seed}, check=True)
    return output


def contents(output: Path) -> list[str]:
    """Return the paths of a layer's files."""
    with tarfile.open(output) as tar:
        return [member.name for member in tar if member.isfile()]


def test_same_files_make_the_same_bytes(tmp_path):
    """Neither folder nor time nor order of the files nor Python's hash seed is in a layer."""
    files = {"main/a.py": SOURCE, "main/b/c.py": SOURCE, "main/d.txt": "text"}
    first = make(tmp_path / "one", "--root=main", files=files)
    reverse = dict(reversed(files.items()))
    second = make(tmp_path / "another/folder", "--root=main", files=reverse, seed="7", mtime=1e9)
    assert first.read_bytes() == second.read_bytes()
    third = make(tmp_path / "third", "--root=main", files=files | {"main/d.txt": "changed"})
    assert first.read_bytes() != third.read_bytes()


def test_files_are_below_the_folder_that_they_are_imported_from(tmp_path):
    """The longest of the import roots counts; what is below none of them is no part of the program."""
    files = {"main/libs/lib/a.py": "", "main/services/b.py": "", "elsewhere/bin/tool": ""}
    output = make(tmp_path, "--root=main", "--root=main/libs", files=files)
    assert [path for path in contents(output) if "__pycache__" not in path] == [
        "opt/app/lib/a.py",
        "opt/app/services/b.py",
    ]


def test_bytecode_shows_the_path_in_the_image():
    """Tracebacks name the file that people find in the image; what is no Python has no bytecode."""
    compiled = bytecode(SOURCE.encode(), "/opt/app/a.py")
    assert compiled
    assert marshal.loads(compiled[16:]).co_filename == "/opt/app/a.py"  # noqa: S302 (our own)
    assert bytecode(b"{{ template }} of something", "/opt/app/a.py") is None


def test_left_out_is_what_the_patterns_say(tmp_path):
    """Patterns are of paths below the root; bytecode that came along is made anew."""
    files = {"main/a.txt": "", "main/test/b.txt": "", "main/__pycache__/a.cpython-314.pyc": ""}
    assert contents(make(tmp_path, "--root=main", "--leave-out=test/*", files=files)) == ["opt/app/a.txt"]


def test_two_files_for_one_place_are_refused(tmp_path):
    """Two packages that have a different file under one name can't be in one folder; the same file can."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("1")
    files = [("a/site-packages/x.py", one), ("b/site-packages/x.py", two)]
    roots = ["a/site-packages", "b/site-packages"]
    assert placed(files, roots, []) == {PurePosixPath("x.py"): one}
    two.write_text("2")
    with pytest.raises(LayerError, match=r"x\.py: .*one and .*two differ"):
        placed(files, roots, [])


def test_program_starts_with_its_packages(tmp_path):
    """The folder is a program: it runs the module as __main__, with its own folder before the packages."""
    output = make(
        tmp_path,
        "--root=main",
        "--start=service.server",
        f"--packages={tmp_path}/packages",
        files={
            "main/service/server.py": "import other, sys\nprint(__name__, other.__file__, sys.argv[1:])\n"
        },
    )
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/other.py").touch()
    with tarfile.open(output) as tar:
        tar.extractall(tmp_path, filter="data")
    command = [sys.executable, "-I", "-B", tmp_path / "opt/app", "migrate"]
    started = subprocess.run(command, check=True, capture_output=True, text=True)
    assert started.stdout == f"__main__ {tmp_path}/packages/other.py ['migrate']\n"


def test_binary_with_another_name_than_its_main_file_is_refused(tmp_path):
    """Whoever declares the image learns what to change."""
    command = [
        sys.executable,
        layer.__file__,
        f"--output={tmp_path}/x",
        "--prefix=x",
        PLATFORM,
        "--start=service.server",
    ]
    result = subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: no module service.server: call the binary what its main file is called\n"
